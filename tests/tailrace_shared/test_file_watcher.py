"""Files that are reloaded when they change."""

import logging
import os

import pytest

from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.file_watcher import ReloadableFile


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "number"
    path.write_text("1")
    return path


@pytest.fixture
def reads():
    """Every text that was read."""
    return []


@pytest.fixture
def watched(path, reads):
    """Returns a ReloadableFile of `path` whose content is an integer."""

    def read():
        reads.append(path.read_text())
        try:
            return int(reads[-1])
        except ValueError:
            raise ConfigurationError(f"{path} is not a number.") from None

    return lambda **options: ReloadableFile((path,), read, **options)


def replace(path, text):
    """Replace the file atomically."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_unchanged_file_is_not_read_again(watched, reads):
    file = watched()
    assert not file.reload_if_changed()
    assert (file.content, reads) == (1, ["1"])


@pytest.mark.parametrize("write", [replace, lambda path, text: path.write_text(text)], ids=["replaced", "rewritten"])
def test_changed_file_is_read_again_and_logged(watched, path, write, caplog):
    file = watched()
    write(path, "23")
    with caplog.at_level(logging.INFO):
        assert file.reload_if_changed()
        assert not file.reload_if_changed()
    assert file.content == 23
    assert caplog.messages == [f"reloaded: {path}"]


def test_change_that_keeps_size_and_modification_time_is_found(watched, path):
    file = watched()
    status = path.stat()
    path.write_text("2")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.reload_if_changed()
    assert file.content == 2


def test_invalid_content_keeps_the_last_valid_one_and_warns_once(watched, path, caplog):
    file = watched()
    path.write_text("one")
    assert not file.reload_if_changed()
    assert not file.reload_if_changed()
    assert file.content == 1
    assert caplog.messages == [f"{path} is not a number; the last valid version stays active"]
    path.write_text("25")
    assert file.reload_if_changed()
    assert file.content == 25


def test_file_that_changes_while_it_is_read_is_read_at_the_next_check(path):
    later_writes = []

    def read():
        content = int(path.read_text())
        if later_writes:  # another process writes meanwhile
            path.write_text(later_writes.pop())
        return content

    file = ReloadableFile((path,), read)
    later_writes.append("456")
    path.write_text("23")
    assert not file.reload_if_changed()
    assert file.content == 1
    assert file.reload_if_changed()
    assert file.content == 456


def test_checks_are_at_least_the_given_time_apart(watched, path, reads, monkeypatch):
    now = 100.0
    monkeypatch.setattr("tailrace_shared.file_watcher.time.monotonic", lambda: now)
    file = watched(min_seconds=2.0)
    path.write_text("23")
    now = 101.9
    assert not file.reload_if_changed()
    now = 102.0
    assert file.reload_if_changed()
    assert reads == ["1", "23"]


def test_invalid_file_at_the_start_is_an_error(watched, path):
    path.write_text("one")
    with pytest.raises(ConfigurationError, match="is not a number"):
        watched()


def test_any_of_several_files_is_watched(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("x")
    file = ReloadableFile(paths, lambda: [path.read_text() for path in paths])
    paths[1].write_text("yy")
    assert file.reload_if_changed()
    assert file.content == ["x", "yy"]
