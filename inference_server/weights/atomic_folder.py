"""Folders that are made once and used by many processes: whole or not there at all."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What is made here takes minutes at most; what is older was cut off.
_UNFINISHED_SECONDS = 3600.0


@contextmanager
def made_once(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which then gets the name `folder`, unless another process was faster.

    Nothing stays of it when the body raises.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder.parent)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _remove_unfinished(parent: Path) -> None:
    """What a signal cut off: up to gigabytes, and of no use."""
    for folder in parent.glob(".*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > _UNFINISHED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
