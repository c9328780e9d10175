"""A folder of recordings: its files' names, and the sentence for every folder that cannot be used."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference_server.grpc_api.recordings import folder as folders
from inference_server.grpc_api.recordings.folder import RecordingsFolder
from tailrace_shared.config_errors import ConfigurationError
from tests.inference_server.grpc_api.recordings.messages import DEFAULTS, MODEL, recording


def problem(path, mode="replay") -> str:
    with pytest.raises(ConfigurationError) as caught:
        RecordingsFolder(path, mode)
    return str(caught.value)


def test_models_and_recordings_are_read_back(path):
    folder = RecordingsFolder(path, "replay")
    assert (len(folder), list(folder.models)) == (1, [MODEL])
    assert folder.models[MODEL].sampling_defaults == DEFAULTS
    assert folder.find(recording("Where is New York?").key) == recording("Where is New York?")
    assert folder.find(recording("Where is old York?").key) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Where is New York?", r"tiny\.where-is-new-york\.[0-9a-f]{8}\.json"),
        ("../../etc/passwd\0\n" + "x" * 300, r"tiny\.etc-passwd-x{29}\.[0-9a-f]{8}\.json"),
        ("你好 Zürich!", r"tiny\.你好-zürich\.[0-9a-f]{8}\.json"),
        ("???", r"tiny\.empty\.[0-9a-f]{8}\.json"),
    ],
)
def test_a_file_is_named_by_model_words_and_hash(tmp_path, text, name):
    saved = RecordingsFolder(tmp_path, "record").save(recording(text))
    assert re.fullmatch(name, saved)
    assert [file.name for file in tmp_path.iterdir()] == [saved]


def test_a_new_recording_replaces_that_of_the_same_request(path):
    (file,) = path.glob("tiny*.json")
    renamed = file.rename(path / "new york.json")
    RecordingsFolder(path, "record").save(recording("Where is New York?", "b"))
    assert [each.name for each in path.glob("*.json")].count("new york.json") == 1
    assert sorted(each.name for each in path.iterdir()) == ["models.json", "new york.json"]
    assert '"b"' in renamed.read_text()


def test_an_equal_recording_leaves_the_file_alone(path):
    (file,) = path.glob("tiny*.json")
    before = file.stat()
    RecordingsFolder(path, "record").save(recording("Where is New York?"))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_unfinished_and_other_files_are_ignored(path):
    (path / ".tiny.json-1.tmp").write_text('{"tailrace_')
    (path / ".hidden.json").write_text("x")
    (path / "README.md").write_text("Recordings of our tests")
    assert len(RecordingsFolder(path, "replay")) == 1
    os.utime(path / ".tiny.json-1.tmp", (0, 0))
    RecordingsFolder(path, "auto")
    assert not (path / ".tiny.json-1.tmp").exists()


def test_a_folder_without_recordings_is_refused_with_the_command(tmp_path):
    for path, reason in ((tmp_path / "missing", "does not exist"), (tmp_path, "has no recordings")):
        assert problem(path) == (
            f"the folder {path} of TAILRACE_RECORDINGS {reason}: record first, with tailrace serve --record {path}"
        )
    (tmp_path / "file").touch()
    assert "is not a folder" in problem(tmp_path / "file")
    assert "cannot write to the folder" in problem(tmp_path / "file" / "inner", "record")


@pytest.mark.parametrize("mode", ["replay", "record", "auto"])
def test_a_damaged_recording_is_named(path, mode):
    (file,) = path.glob("tiny*.json")
    file.write_bytes(file.read_bytes()[:300])
    assert problem(path, mode).startswith(f"{file} is not JSON (")
    assert problem(path, mode).endswith(": restore it, or delete it and record it again")


def test_a_foreign_json_file_is_named(path, tmp_path):
    (path / "package.json").write_text("{}")
    assert f"{path / 'package.json'} is not a recording: " in problem(path)
    (tmp_path / "tsconfig.json").write_text("{}")
    assert "has JSON files but no models.json" in problem(tmp_path, "record")


@pytest.mark.parametrize("text", ["[]", '{"tailrace_models": 1, "models": [{"nmae": "x"}]}', "{", "\xff"])
def test_a_damaged_list_of_models_is_named(path, text):
    (path / "models.json").write_text(text, encoding="latin-1")
    assert problem(path).startswith(f"{path / 'models.json'} is ")


def test_two_recordings_of_one_request_are_refused(path):
    (file,) = path.glob("tiny*.json")
    (path / "copy.json").write_text(file.read_text())
    assert f"{file.name} and copy.json in {path} are recordings of the same request: delete one of them" in problem(
        path
    )


def test_several_threads_may_save_at_the_same_time(tmp_path, monkeypatch):
    choose = folders._file_name

    def choose_with_pauses(recording, taken):
        for _ in taken:
            time.sleep(0)  # lets the other threads run
        return choose(recording, taken)

    monkeypatch.setattr(folders, "_file_name", choose_with_pauses)
    folder = RecordingsFolder(tmp_path, "record")
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(folder.save, [recording(f"question {number}") for number in range(50)]))
    assert len(set(names)) == len(folder) == len(list(tmp_path.iterdir())) == 50
