"""Saved conversations, the history file and the completion of a chat."""

import json
import os
import stat

import pytest

from tailrace_cli.chatting import history
from tailrace_cli.chatting.commands import State, completions, obey
from tailrace_cli.chatting.conversation import Conversation, load, save
from tailrace_cli.client import ModelLine
from tailrace_cli.errors import Failure

SAVED = Conversation(
    "m", "Be brief.", {"top_p": 0.5, "seed": 3}, ("END",), '{"a": 1}', [("user", "é"), ("assistant", "b")]
)


def test_a_saved_conversation_is_loaded_again(tmp_path):
    path = tmp_path / "chat.json"
    for _ in range(2):
        save(SAVED, path)
    assert load(path) == SAVED
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["chat.json"]


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(Failure, match="is not a saved conversation"):
        save(SAVED, path)
    assert path.read_text() == "mine"


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(Failure, match="cannot be written: No such file or directory"):
        save(SAVED, tmp_path / "none" / "chat.json")


@pytest.mark.parametrize("name", ["file/chat.json", "x" * 300])
def test_a_name_that_cannot_be_used_is_a_sentence(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="cannot be written: "):
        save(SAVED, tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_an_unknown_home_directory_is_a_sentence(tmp_path):
    state = State(None, SAVED, [], can_edit=True)
    for command in ("/save", "/load", "/schema"):
        with pytest.raises(Failure, match="home directory"):
            obey(f"{command} ~nosuchuser/chat.json", state)
        assert completions(f"{command} ~nosuchuser/ch", state) == []


@pytest.mark.parametrize(
    "change",
    [
        {"turns": [{"role": "user", "content": "a"}]},
        {"turns": [{"role": "user", "content": 1}, {"role": "assistant", "content": "b"}]},
        {"turns": 1},
        {"system": None},
        {"sampling": {"top_p": "x"}},
        {"sampling": {"top_p": 2}},
        {"sampling": {"max_tokens": 1.5}},
        {"sampling": {"nothing": 1}},
        {"schema": 3},
    ],
)
def test_a_damaged_conversation_is_refused(tmp_path, change):
    path = tmp_path / "chat.json"
    save(SAVED, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Failure, match="is not a complete conversation"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[" * 100_000, b"{}", b'{"format": "other"}'])
def test_another_file_is_not_a_conversation(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Failure, match="is not a conversation that /save wrote"):
        load(tmp_path / "x")


@pytest.fixture
def state_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TAILRACE_CHAT_HISTORY", raising=False)
    return tmp_path


def test_the_history_is_private(state_home):
    path = history.history_file(is_wanted=True)
    assert path == state_home / "tailrace" / "chat-history"
    path.chmod(0o644)
    history.history_file(is_wanted=True)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)] == [0o600, 0o700]


def test_the_history_can_be_switched_off_or_moved(state_home, monkeypatch):
    assert history.history_file(is_wanted=False) is None
    monkeypatch.setenv("TAILRACE_CHAT_HISTORY", "off")
    assert history.history_file(is_wanted=True) is None
    monkeypatch.setenv("TAILRACE_CHAT_HISTORY", str(state_home / "mine"))
    assert history.history_file(is_wanted=True) == state_home / "mine"
    assert not (state_home / "tailrace").exists()


def test_an_unusable_history_is_a_note(state_home, monkeypatch, capsys):
    monkeypatch.setenv("TAILRACE_CHAT_HISTORY", "/proc/none/x")
    assert history.history_file(is_wanted=True) is None
    assert "No history is kept: /proc/none/x cannot be used" in capsys.readouterr().err


def test_a_history_that_is_no_file_keeps_its_mode(monkeypatch):
    monkeypatch.setenv("TAILRACE_CHAT_HISTORY", "/dev/null")
    before = os.stat("/dev/null").st_mode
    monkeypatch.setattr("pathlib.Path.chmod", lambda path, mode: pytest.fail(f"{path} would have the mode {mode:o}"))
    assert history.history_file(is_wanted=True) is None
    assert os.stat("/dev/null").st_mode == before


def test_both_editors_read_the_same_history(state_home):
    path = history.history_file(is_wanted=True)
    for question in ("one", "two\nlines\n\n+ plus", "é"):
        history.append(path, question)
    assert history.entries(path) == ["one", "two\nlines\n\n+ plus", "é"]
    prompt_toolkit = pytest.importorskip("prompt_toolkit.history")
    file = prompt_toolkit.FileHistory(str(path))
    file.store_string("four\nfive")
    assert list(file.load_history_strings())[0] == "four\nfive"
    assert list(file.load_history_strings())[::-1] == history.entries(path)


def test_a_long_history_loses_its_older_half(state_home, monkeypatch):
    monkeypatch.setattr(history, "_MAX_BYTES", 2000)
    path = history.history_file(is_wanted=True)
    for number in range(100):
        history.append(path, f"question {number}")
    found = history.entries(history.history_file(is_wanted=True))
    assert 5 < len(found) < 50 and found[-1] == "question 99"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/mo", ["/model"]),
        ("/model ec", ["@cf/meta/echo"]),
        ("/model @cf/m", ["@cf/meta/echo", "@cf/meta/other"]),
        ("/set top", ["top_p", "top_k"]),
        ("hello /m", []),
        ("/save ch", ["chat.json"]),
    ],
)
def test_commands_models_parameters_and_files_are_completed(tmp_path, monkeypatch, line, words):
    (tmp_path / "chat.json").touch()
    monkeypatch.chdir(tmp_path)
    names = ["@cf/meta/echo", "@cf/meta/other"]
    models = [*(ModelLine(name, "", 1, 1) for name in names), ModelLine("@cf/m/embed", "", 1, 0, dimensions=3)]
    assert completions(line, State(None, SAVED, models, can_edit=True)) == words
