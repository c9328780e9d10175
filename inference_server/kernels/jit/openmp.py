"""Runs a kernel on the threads that torch already has, so that there is one pool of threads in the process.

torch's threads on Linux belong to GNU's OpenMP library, whose GOMP_parallel calls a C function once on each of them.
There may be other copies of that library in the process, with threads of their own: what counts is the one torch is
linked with. Where there is none (macOS, Windows), kernels run on the calling thread alone.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

_IS_LINUX = sys.platform == "linux"

Start = Callable[[int, object, int, int], None]


@cache
def _library() -> ctypes.CDLL | None:
    """torch's own, already loaded: symbols are looked for in it, then in what it was linked with."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")) if _IS_LINUX else None
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
