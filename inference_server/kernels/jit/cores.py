"""Counts the cores that this process may use, and limits torch's threads to them.

torch counts processors, though two hyperthreads of a core share its arithmetic units. torch also ignores a container's
CPU quota. With more threads than the quota allows, the system stops all of them for part of each period.
"""

import logging
import os
import sys
from pathlib import Path

from inference_server.control_groups import cpu_quotas

logger = logging.getLogger(__name__)

_VARIABLE = "OMP_NUM_THREADS"


def limit_threads() -> None:
    """Lower the number of torch's threads to the number of usable cores. Has no effect if OMP_NUM_THREADS is set."""
    import torch

    cores = usable_cores()
    if _VARIABLE in os.environ or cores is None or cores >= torch.get_num_threads():
        return
    threads = f"{cores} thread{'s' if cores > 1 else ''}"
    logger.info("computing on %s instead of %d: see %s", threads, torch.get_num_threads(), _VARIABLE)
    torch.set_num_threads(cores)


def usable_cores(root: Path = Path("/")) -> int | None:
    """Return the number of physical cores on which this process may run, at most its CPU quota; at least 1.

    A fractional quota is rounded down. Returns None on systems other than Linux.

    Args:
        root: The folder that contains `proc` and `sys`; tests replace it.
    """
    if sys.platform != "linux":
        return None
    cores = {_core(root, cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, int(min([len(cores), *cpu_quotas(root)])))


def _core(root: Path, cpu: int) -> str:
    """Return a name of the physical core to which a processor belongs: the list of the core's processors."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
