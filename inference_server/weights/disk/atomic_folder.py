"""Creates folders atomically: other processes see a complete folder or none.

An unfinished folder has a name that begins with a dot. The process that fills it holds a lock on it, and the system
releases this lock when the process ends. So other processes can recognise and remove the folders of killed processes.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference_server.weights.disk.locks import exclusively, is_in_use, marked_in_use
from inference_server.weights.disk.space import is_full, require_free
from tailrace_shared.config_errors import ConfigurationError

# Filling a folder takes a few minutes at most. Where the file system has no locks, an unfinished folder older than this
# is assumed to belong to a killed process.
_UNFINISHED_SECONDS = 3600.0
_LOCKS = ".locks"
# Subfolders of the cache folder in which atomic folders are created.
_PARENTS = ("converted", "gguf", "packed", "packages")


@contextmanager
def atomic_directory(folder: Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """Yield an empty folder to fill, and rename it to `folder` afterwards.

    If another process has made `folder` in the meantime, that folder is kept. If the `with` block raises, no folder is
    created.

    Args:
        folder: The folder's final path.
        num_bytes: Bytes that the block will write, if they are known.

    Raises:
        ConfigurationError: The parent folder cannot be written, or its disk is too full; the message names
            TAILRACE_CACHE_DIR.
    """
    require_free(num_bytes, folder.parent, folder.name, "TAILRACE_CACHE_DIR")
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with exclusively(_parent_lock(folder.parent), f"creating a folder in {folder.parent}"):
                _remove_unfinished(folder.parent)
                unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
                stack.enter_context(marked_in_use(unfinished))
        except OSError as error:
            raise ConfigurationError(
                f"cannot write to {folder.parent} ({error.strerror}): set TAILRACE_CACHE_DIR to a folder that can be written"
            ) from None
        stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
        try:
            yield unfinished
        except OSError as error:
            if not is_full(error):
                raise
            raise ConfigurationError(
                f"the disk of {folder.parent} is full: free disk space, or set TAILRACE_CACHE_DIR to a folder on a larger disk"
            ) from None
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


@contextmanager
def made_once(folder: Path, activity: str) -> Iterator[bool]:
    """Hold the lock of a folder in the cache, so that one of several processes creates it and the others wait.

    Yields True if the lock was not free at first.

    Args:
        folder: The folder. The block must first check whether it exists, because another process may have made it
            during the wait.
        activity: The activity of the lock's holder, for the log, such as "converting tiny.gguf".
    """
    with exclusively(_locks(folder.parent) / f"{folder.name}.lock", activity) as has_waited:
        yield has_waited


def remove_leftovers(cache_dir: Path) -> None:
    """Remove unfinished folders of killed processes from the cache folder, because they may occupy gigabytes."""
    for parent in (cache_dir / name for name in _PARENTS):
        if parent.is_dir() and any(parent.glob(".*-*")):
            with exclusively(_parent_lock(parent), f"creating a folder in {parent}"):
                _remove_unfinished(parent)


def _parent_lock(parent: Path) -> Path:
    """Return the lock that a process holds while an unfinished folder has no lock of its own yet."""
    return _locks(parent) / f"{parent.name}.lock"


def _locks(parent: Path) -> Path:
    return parent.parent / _LOCKS


def _remove_unfinished(parent: Path) -> None:
    """Remove the unfinished folders in `parent` whose processes were killed."""
    for folder in parent.glob(".*-*"):
        with contextlib.suppress(OSError):  # another process may rename or remove the folder in the meantime
            if not folder.is_dir():
                continue
            in_use = is_in_use(folder)
            if in_use is None:
                in_use = time.time() - folder.stat().st_mtime <= _UNFINISHED_SECONDS
            if not in_use:
                shutil.rmtree(folder, ignore_errors=True)
