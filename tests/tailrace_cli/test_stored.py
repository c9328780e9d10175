"""The commands list, rm and pull, with fake caches."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inference_server.weights import store
from inference_server.weights.fetching.inventory import StoredModel
from tailrace_cli import output, stored
from tailrace_cli.errors import Failure
from tailrace_shared.config_errors import ConfigurationError

OLD = datetime.now(UTC) - timedelta(days=3, hours=2)
# In the future, because a test may run more than a minute after this import.
NEW = datetime.now(UTC) + timedelta(days=1)
PACKED = Path("/cache/packed/0123abcd-bitsandbytes-int8.panels-0123456789abcdef")
MODELS = [
    StoredModel("Qwen/Qwen3-0.6B", "hub", 1_500_000_000, Path("/hub/a"), OLD),
    StoredModel("Qwen/Qwen3-0.6B", "packed", 700_000_000, PACKED, OLD),
    StoredModel("a/b:tiny.Q4_1.gguf", "hub", 98_400_000, Path("/hub/b"), NEW, is_complete=False),
]


@pytest.fixture
def caches(monkeypatch):
    """Both caches. Returns the names of the removed models."""
    removed = []
    monkeypatch.setattr(store, "stored_models", lambda cache_dir: MODELS)
    monkeypatch.setattr(store, "remove_stored", lambda name, cache_dir: removed.append(name) or 2_000_000)
    return removed


def test_list_has_a_line_for_each_model_with_its_forms(caches, capsys):
    assert stored.list_stored(as_json=False) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.split() == ["NAME", "SIZE", "USED", "FORMS"]
    assert second == "Qwen/Qwen3-0.6B      2.2 GB   3 days ago   downloaded, bitsandbytes-int8"
    assert third == "a/b:tiny.Q4_1.gguf   98 MB    now          incomplete"


def test_list_as_json_has_every_form_with_its_bytes_and_path(caches, capsys):
    stored.list_stored(as_json=True)
    first, second, _ = json.loads(capsys.readouterr().out)
    assert (first["name"], first["bytes"], first["path"]) == ("Qwen/Qwen3-0.6B", 1_500_000_000, "/hub/a")
    assert (second["kind"], second["form"]) == ("packed", "bitsandbytes-int8")
    assert datetime.fromisoformat(first["last_used"]) == OLD.replace(microsecond=0)


def test_rm_takes_the_end_of_a_name(caches, capsys):
    assert stored.remove(["qwen3-0.6b"]) == 0
    assert (caches, capsys.readouterr().out) == (["Qwen/Qwen3-0.6B"], "removed Qwen/Qwen3-0.6B (2 MB)\n")


def test_rm_of_a_model_that_is_not_here_fails(caches, monkeypatch):
    def fail(name, cache_dir):
        raise ConfigurationError(f"no model {name} is stored here")

    monkeypatch.setattr(store, "remove_stored", fail)
    with pytest.raises(Failure, match=r"no model x is stored here\."):
        stored.remove(["x"])


def test_pull_fetches_each_model_and_prints_its_place(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"x" * 2000)
    fetched = []

    def fetch(weights, cache_dir, *, refresh=False, show=None):
        fetched.append((weights.hub, refresh))
        return tmp_path

    monkeypatch.setattr(store, "fetch", fetch)
    monkeypatch.setattr(stored, "_show_progress", lambda: None)
    assert stored.pull(["a/b", "c/d"]) == 0
    assert fetched == [("a/b", True), ("c/d", True)]
    assert capsys.readouterr().out == f"a/b: {tmp_path} (2 kB)\nc/d: {tmp_path} (2 kB)\n"


def test_pull_of_a_wrong_name_fails():
    with pytest.raises(Failure, match=r"^there is no file or folder \./x\.$"):
        stored.pull(["./x"])


def test_the_next_line_takes_the_place_of_progress(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    handler = stored._LinesAfterProgress()
    handler.show("getting a: 1 of 2 GB")
    handler.show("getting b")
    for text in ("done", "end"):
        handler.handle(logging.makeLogRecord({"msg": text}))
    clear = "\r\033[K"
    assert capsys.readouterr().err == f"{clear}getting a: {clear}getting b{clear}done\nend\n"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "2 kB"), (98_400_000, "98 MB"), (1_500_000_000, "1.5 GB"), (3e12, "3.0 TB")],
)
def test_sizes_have_decimal_units(num_bytes, text):
    assert output.size(int(num_bytes)) == text
