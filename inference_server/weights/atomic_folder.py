"""Creates folders atomically: other processes see a complete folder or none."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tailrace_shared.config_errors import ConfigurationError

# Filling a folder takes a few minutes at most. An older unfinished folder belongs to a process that was killed.
_UNFINISHED_SECONDS = 3600.0


@contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, and rename it to `folder` afterwards.

    If another process has made `folder` in the meantime, that folder is kept. If the `with` block raises, no folder is
    created.

    Raises:
        ConfigurationError: The parent folder cannot be written; the message names TAILRACE_CACHE_DIR.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {folder.parent} ({error.strerror}): set TAILRACE_CACHE_DIR to a folder that can be written"
        ) from None
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
    """Remove folders of processes that were killed: they may occupy gigabytes."""
    for folder in parent.glob(".*"):
        with contextlib.suppress(OSError):  # another process has renamed or removed the folder in the meantime
            if folder.is_dir() and time.time() - folder.stat().st_mtime > _UNFINISHED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
