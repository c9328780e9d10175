"""Locks between servers that share a cache folder. The system releases a process's locks even if it is killed."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference_server.progress import progress

try:
    import fcntl
except ImportError:  # Windows, where only the CLI runs
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_BUSY = (errno.EAGAIN, errno.EACCES)


@contextmanager
def exclusively(lock: Path, activity: str) -> Iterator[bool]:
    """Hold a lock for the `with` block. Wait, with lines of progress, while another process or thread holds it.

    Yields True if the lock was not free at first.

    If the folder cannot be written or the file system has no locks, the block runs without the lock. The same work may
    then be done twice.

    Args:
        lock: The lock file. It is never removed: if it were, two processes could hold the lock.
        activity: The activity of the lock's holder, for the log, such as "downloading owner/name".
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        logger.debug("no lock %s: %s", lock, error)
        yield False
        return
    try:
        yield _wait(descriptor, activity)
    finally:
        os.close(descriptor)


def _wait(descriptor: int, activity: str) -> bool:
    """Lock an open file. Returns True if the lock was not free at first."""
    if try_lock(descriptor) is not False:
        return False
    with progress(f"waiting for another process that is {activity}", every_seconds=10.0):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder without waiting.

    Returns False if it is already locked, None if the system has no locks for it.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _BUSY else None
    return True


@contextmanager
def marked_in_use(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder itself during the `with` block, so that `is_in_use` returns True for it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try_lock(descriptor)
        yield


def is_in_use(folder: Path) -> bool | None:
    """Return True if a running process has marked the folder; None if the file system has no locks for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # its process has just renamed it to the final name
    except OSError:
        return None
    try:
        locked = try_lock(descriptor)
        return None if locked is None else not locked
    finally:
        os.close(descriptor)
