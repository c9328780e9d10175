"""Folders that one process creates and others use."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from inference_server.weights.disk import space as disk_space
from inference_server.weights.disk.atomic_folder import atomic_directory, made_once, remove_leftovers
from tailrace_shared.config_errors import ConfigurationError
from tests.support.processes import ROOT

FILL_AND_WAIT = """
import pathlib, sys, time
from inference_server.weights.disk.atomic_folder import atomic_directory
with atomic_directory(pathlib.Path(sys.argv[1])) as unfinished:
    (unfinished / "half").touch()
    print("filling", flush=True)
    time.sleep(60)
"""


def test_a_complete_folder_has_its_name_at_the_end_only(tmp_path):
    with atomic_directory(tmp_path / "packed" / "made") as unfinished:
        (unfinished / "file").touch()
        assert not (tmp_path / "packed" / "made").exists()
    assert [path.name for path in (tmp_path / "packed").rglob("*")] == ["made", "file"]


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(tmp_path):
    folder = tmp_path / "converted" / "made"
    command = [sys.executable, "-c", FILL_AND_WAIT, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"filling\n"
        remove_leftovers(tmp_path)
        assert len(list(folder.parent.iterdir())) == 1
    finally:
        process.kill()
        process.communicate()
    remove_leftovers(tmp_path)
    assert list(folder.parent.iterdir()) == []


def test_without_locks_only_an_old_unfinished_folder_is_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for name, age in {".old-1": 7200.0, ".new-2": 60.0}.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, times=(time.time() - age,) * 2)
    with atomic_directory(tmp_path / "made"):
        assert not (tmp_path / ".old-1").exists()
        assert (tmp_path / ".new-2").is_dir()


def test_an_unfinished_folder_that_another_process_renames_is_ignored(tmp_path, monkeypatch):
    (tmp_path / ".other-1").symlink_to(tmp_path / "renamed already")
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    with atomic_directory(tmp_path / "made"):
        pass
    assert (tmp_path / "made").exists()


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9))
    with (
        pytest.raises(
            ConfigurationError, match=r"^made needs 5\.0 GB in .*, which has 1\.0 GB free: .*TAILRACE_CACHE_DIR"
        ),
        atomic_directory(tmp_path / "packed" / "made", num_bytes=5 * 10**9),
    ):
        pytest.fail("the body must not run")
    assert not (tmp_path / "packed").exists()


def test_a_disk_that_becomes_full_is_named_and_nothing_stays(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^the disk of .*packed is full: "):
        with atomic_directory(tmp_path / "packed" / "made"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert list((tmp_path / "packed").iterdir()) == []


def test_of_two_processes_one_makes_a_folder_and_the_other_waits_with_a_line_in_its_log(tmp_path):
    make = """
import logging, pathlib, sys, time
from inference_server.weights.disk.atomic_folder import atomic_directory, made_once
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
folder = pathlib.Path(sys.argv[1])
with made_once(folder, "converting tiny"):
    print("has the lock", flush=True)
    if not folder.is_dir():
        with atomic_directory(folder):
            sys.stdin.readline()
        print("made it", flush=True)
"""
    command = [sys.executable, "-c", make, str(tmp_path / "converted" / "made")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert first.stdout.readline() == "has the lock\n"
    second = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert second.stdout.readline() == "waiting for another process that is converting tiny\n"
    assert first.communicate("\n", timeout=20)[0] == "made it\n"
    lines = second.communicate(timeout=20)[0].splitlines()
    assert lines[-1] == "has the lock"


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    folder = tmp_path / "converted" / "made"
    hold = (
        "import pathlib, sys, time\nfrom inference_server.weights.disk.atomic_folder import made_once\n"
        "with made_once(pathlib.Path(sys.argv[1]), 'x'):\n    print(flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.kill()
    process.communicate()
    with made_once(folder, "x") as has_waited:
        assert not has_waited
