"""Folders that one process creates and others use."""

import os
import time
from pathlib import Path

from inference_server.weights.atomic_folder import atomic_directory


def test_a_complete_folder_has_its_name_at_the_end_only(tmp_path):
    with atomic_directory(tmp_path / "made") as unfinished:
        (unfinished / "file").touch()
        assert not (tmp_path / "made").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "file"]


def test_an_old_unfinished_folder_is_removed_and_a_new_one_stays(tmp_path):
    for name, age in {".old": 7200.0, ".new": 60.0}.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, times=(time.time() - age,) * 2)
    with atomic_directory(tmp_path / "made"):
        assert not (tmp_path / ".old").exists()
        assert (tmp_path / ".new").is_dir()


def test_an_unfinished_folder_that_another_process_renames_is_ignored(tmp_path, monkeypatch):
    (tmp_path / ".other").symlink_to(tmp_path / "renamed already")
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    with atomic_directory(tmp_path / "made"):
        pass
    assert (tmp_path / "made").exists()
