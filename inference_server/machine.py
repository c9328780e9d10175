"""Measures the memory that this process may use: the machine's memory, limited by control groups."""

import os
from pathlib import Path

from inference_server.control_groups import memory_limits


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process and its control group may use in total, in bytes.

    Args:
        root: The folder that contains `proc` and `sys`; tests replace it.
    """
    return min([machine_memory_bytes(), *(limit for limit, _ in memory_limits(root))])


def machine_memory_bytes() -> int:
    """Return the machine's memory in bytes, ignoring the limits of control groups."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process can still allocate without swapping, in bytes.

    On systems without /proc, this is the machine's memory.

    Args:
        root: The folder that contains `proc` and `sys`; tests replace it.
    """
    left = (max(0, limit - usage) for limit, usage in memory_limits(root))
    return min([_available_on_machine(root), *left])


def _available_on_machine(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024  # the file counts in KiB
    except (OSError, ValueError, IndexError):
        pass
    return machine_memory_bytes()
