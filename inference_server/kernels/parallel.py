"""Runs a kernel on the threads that torch already has, so that there is one pool of threads in the process.

torch's threads on Linux belong to GNU's OpenMP library, whose GOMP_parallel calls a C function once on each of them.
Where another library is at work (macOS, Windows), kernels run on the calling thread alone.
"""

import ctypes
import glob
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

Start = Callable[[int, object, int, int], None]


def _loaded_libraries() -> list[str]:
    """Paths of OpenMP libraries in this process; beside torch where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        paths = {line.split(maxsplit=5)[5] for line in lines if "omp" in line and line.count("/")}
    except OSError:
        paths = set(glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*")))
    return sorted(path for path in paths if os.path.basename(path).startswith(("libgomp", "libomp", "libiomp")))


@cache
def _library() -> ctypes.CDLL | None:
    """OpenMP's, if exactly one is loaded."""
    if sys.platform != "linux" or len(libraries := _loaded_libraries()) != 1:
        return None
    try:
        return ctypes.CDLL(libraries[0])
    except OSError:
        return None


def find_start() -> Start | None:
    """GOMP_parallel(function, argument, number of threads, flags)."""
    try:
        start = _library().GOMP_parallel  # type: ignore[union-attr]
    except AttributeError:
        return None
    start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    start.restype = None
    return start


def thread_functions() -> tuple[int, int]:
    """Addresses of omp_get_num_threads and sched_yield; 0 for what is not there."""
    return _address(_library(), "omp_get_num_threads"), _address(ctypes.CDLL(None), "sched_yield")


def _address(library: ctypes.CDLL | None, name: str) -> int:
    function = getattr(library, name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0
