"""Finds the OpenMP functions that run a kernel on torch's own threads, so that the process has one thread pool.

On Linux, torch's threads belong to GNU's OpenMP library, whose GOMP_parallel calls a C function once on each of them.
The process may contain other copies of that library with separate threads; only the copy that torch is linked with is
used. On systems without it (macOS, Windows), kernels run on the calling thread only.
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
    """Return torch's CPU library, already loaded. Symbols are found in this library or in those it is linked with."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")) if _IS_LINUX else None
    except OSError:
        return None


def find_start() -> Start | None:
    """Return GOMP_parallel(function, argument, number of threads, flags), or None if torch is not linked with it."""
    try:
        start = _library().GOMP_parallel  # type: ignore[union-attr]
    except AttributeError:
        return None
    start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    start.restype = None
    return start


@cache
def thread_counter() -> int:
    """Return the address of omp_get_num_threads, or 0 if it does not exist."""
    return _address(_library(), "omp_get_num_threads")


@cache
def sleep_function() -> int:
    """Return the address of usleep, with which threads wait for each other, or 0 on systems other than Linux."""
    return _address(ctypes.CDLL(None), "usleep") if _IS_LINUX else 0


def use_one_thread() -> None:
    """Make torch's operations compute on the calling thread alone, from now on. Calls on other threads are not affected.

    Some operations of torch and of MKL round differently with a different number of threads. Without torch's OpenMP library,
    the operations of every thread are affected.
    """
    # The first call initialises this thread's number of threads. If it came later, it would undo the lines below.
    torch.get_num_threads()
    try:
        _library().omp_set_num_threads(1)  # type: ignore[union-attr]
        _library().MKL_Set_Num_Threads_Local(1)  # type: ignore[union-attr]
    except AttributeError:
        torch.set_num_threads(1)


def _address(library: ctypes.CDLL | None, name: str) -> int:
    function = getattr(library, name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0
