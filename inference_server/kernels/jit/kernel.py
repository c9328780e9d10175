"""Has the kernels compiled when they are first wanted, and runs them on as many threads as pay."""

import ctypes
import logging
from functools import cache
from importlib import import_module
from typing import Any

import torch

from inference_server.kernels.jit.arguments import BLOCK_BYTES
from inference_server.kernels.jit.openmp import find_start

_log = logging.getLogger(__name__)

# Below this much work on one thread, waking another costs more than it saves; and the interpreter's lock is kept, since
# asking for it again could mean waiting for another thread of Python.
_SMALL_NS = 8_000

ENOUGH_NS = 1 << 40  # for any number of threads

_Block: Any = ctypes.c_int64 * (BLOCK_BYTES // 8)
_is_broken = False
_MODULES = {
    "rows": "inference_server.kernels.simd.norm_rope",
    "decode": "inference_server.kernels.simd.decode_attention",
    "prefill": "inference_server.kernels.amx.prefill_attention",
    "steps": "inference_server.kernels.jit.program_runner",
}


class Kernel:
    """One compiled function over a block of int64."""

    def __init__(self, address: int) -> None:
        self.address = address
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self._call_with_lock = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(address)
        self._start = find_start()

    def run(self, arguments: bytes, num_items: int, nanoseconds: int) -> None:
        """`arguments`: of arguments.py. `nanoseconds`: about how long it takes on one thread."""
        block = _Block.from_buffer_copy(arguments)
        if nanoseconds < _SMALL_NS:
            self._call_with_lock(block)
            return
        num_threads = min(num_items, torch.get_num_threads())
        if num_threads > 1 and self._start is not None:
            self._start(self.address, block, num_threads, 0)
        else:
            self._call(block)


@cache
def kernel(name: str, *forms: bool) -> Kernel | None:
    """`rows.silu_mul` is what rows.make_silu_mul(*forms) describes; None where it cannot be had, which is logged once."""
    global _is_broken
    if _is_broken:
        return None
    module, _, function = name.partition(".")

    def make() -> Any:
        return getattr(import_module(_MODULES[module]), f"make_{function}")(*forms)

    try:
        from inference_server.kernels.jit import object_cache as objects

        file_name = "-".join([name, *("bf16" if form else "float32" for form in forms)])
        return Kernel(objects.entry(file_name, make, objects.default_folder()))
    except Exception as error:  # whatever it is, plain torch can do the work
        _is_broken = True
        _log.warning("no compiled kernels, plain torch instead (slower): %s: %s", type(error).__name__, error)
        return None
