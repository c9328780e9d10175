"""Reads the limits of Linux control groups (cgroups), with which container runtimes limit CPU time and memory.

Format: the kernel's documentation, admin-guide/cgroup-v2 (`cpu.max`, `memory.max`) and admin-guide/cgroup-v1
(`cpu.cfs_quota_us`, `memory.limit_in_bytes`). A group's limit also holds for all groups below it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

_MOUNTS_V2: tuple[str, ...] = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_MOUNTS_V1: dict[str, tuple[str, ...]] = {
    "cpu": ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"),
    "memory": ("sys/fs/cgroup/memory",),
}
# Version 1 reports a very large number of bytes, which depends on the page size, for a group without a limit.
_NO_LIMIT_BYTES = 2**60


def cpu_quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yield the CPU quotas of this process's groups and of all groups above them, in processors.

    Args:
        root: The folder that contains `proc` and `sys`; tests replace it.
    """
    for version, folder in _groups("cpu", root):
        with contextlib.suppress(OSError, ValueError):
            if version == 1:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            else:
                quota, period = (int(word) for word in (folder / "cpu.max").read_text().split())  # ValueError for "max"
            if quota > 0:
                yield quota / period


def memory_limits(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """Yield the limit and the usage in bytes of every group of this process, and of groups above, that has a limit.

    The usage does not include the inactive page cache, which the kernel reclaims when it needs memory.

    Args:
        root: The folder that contains `proc` and `sys`; tests replace it.
    """
    for version, folder in _groups("memory", root):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        with contextlib.suppress(OSError, ValueError):
            limit, usage = (int((folder / name).read_text()) for name in names)  # ValueError for "max"
            if limit < _NO_LIMIT_BYTES:
                yield limit, max(0, usage - _cached_bytes(folder))


def _cached_bytes(folder: Path) -> int:
    """Return the inactive page cache of a group, in bytes; 0 if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of this process's groups with a controller, and of all groups above them."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                version, mounts = 2, _MOUNTS_V2
            elif controller in controllers.split(","):
                version, mounts = 1, _MOUNTS_V1[controller]
            else:
                continue
            inner = Path(path.strip("/"))
            # In a container, the path may be that of the host, and only the topmost folder exists.
            for folder in (inner, *inner.parents):
                yield from ((version, root / mount / folder) for mount in mounts)
