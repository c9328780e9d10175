"""The options of `tailrace serve` for tests become settings."""

import pytest

from tailrace_cli.errors import Failure
from tailrace_cli.serving import options
from tailrace_cli.serving.options import ServeOptions, settings_of


@pytest.mark.parametrize(
    ("given", "mode"),
    [({"record": "a"}, "record"), ({"replay": "a"}, "replay"), ({"record": "a", "replay": "./a"}, "auto")],
)
def test_a_folder_of_recordings_sets_the_mode(given, mode):
    assert settings_of(ServeOptions(deterministic=True, **given)) == {
        "TAILRACE_DETERMINISTIC": "true",
        "TAILRACE_RECORDINGS": "a",
        "TAILRACE_RECORDINGS_MODE": mode,
    }


def test_two_folders_of_recordings_are_refused():
    with pytest.raises(Failure, match="name two folders"):
        settings_of(ServeOptions(record="a", replay="b"))


@pytest.mark.parametrize(("mode", "replays"), [("", True), ("replay", True), ("auto", False), ("record", False)])
def test_no_model_is_needed_to_replay(monkeypatch, mode, replays):
    monkeypatch.setenv("TAILRACE_RECORDINGS_MODE", mode)
    assert not options.replays_only()
    monkeypatch.setenv("TAILRACE_RECORDINGS", "a")
    assert options.replays_only() is replays
