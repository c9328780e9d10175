"""Checks the free disk space before bytes are written, so that a full disk is reported in advance."""

import errno
import shutil
from pathlib import Path

from tailrace_shared.config_errors import ConfigurationError

_KEPT_FREE = 64 << 20  # bytes that stay free, because a completely full disk makes other programs fail


def sized(num_bytes: float) -> str:
    """Return a number of bytes in decimal units, as on the hub's pages: "4.9 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def free_bytes(folder: Path) -> int:
    """Return the bytes that can be written to `folder`, which may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_free(num_bytes: int, folder: Path, purpose: str, variable: str) -> None:
    """Check that the disk of a folder has enough free space.

    Args:
        num_bytes: Bytes that will be written; 0 if unknown, which skips the check.
        folder: The folder, which may not exist yet.
        purpose: Subject of the error's sentence, for example "owner/name".
        variable: The environment variable that selects another folder.

    Raises:
        ConfigurationError: Less space is free than these bytes plus 64 MiB.
    """
    free = free_bytes(folder)
    if num_bytes and num_bytes + _KEPT_FREE > free:
        raise ConfigurationError(
            f"{purpose} needs {sized(num_bytes)} in {folder}, which has {sized(free)} free: "
            f"free disk space, or set {variable} to a folder on a larger disk"
        )


def is_full(error: BaseException) -> bool:
    """Return True if an error means that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
