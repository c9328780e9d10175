"""Loads or compiles a kernel when it is first needed, and runs it on as many threads as make it faster."""

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from inference_server.kernels.jit.arguments import BLOCK_BYTES
from inference_server.kernels.jit.openmp import find_start

logger = logging.getLogger(__name__)

# With less work than this, waking a second thread costs more time than it saves. The GIL is then kept as well,
# because acquiring it again could take longer than the kernel.
_SMALL_NS = 8_000

ENOUGH_NS = 1 << 40  # estimate in ns that never limits the number of threads

_Block: Any = ctypes.c_int64 * (BLOCK_BYTES // 8)
_is_broken = False


class Kernel:
    """A compiled function whose only argument is the address of an argument block (see arguments.py)."""

    def __init__(self, address: int) -> None:
        """`address`: address of the machine code, which must stay loaded."""
        self.address = address
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self._call_with_lock = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(address)
        self._start = find_start()

    def run(self, arguments: bytes, num_items: int, nanoseconds: int) -> None:
        """Run the kernel once and wait for its end.

        Args:
            arguments: The argument block, built by arguments.py.
            num_items: Number of work items, an upper limit for the number of threads.
            nanoseconds: The approximate duration on one thread.
        """
        block = _Block.from_buffer_copy(arguments)
        if nanoseconds < _SMALL_NS:
            self._call_with_lock(block)
            return
        num_threads = min(num_items, torch.get_num_threads())
        if num_threads > 1 and self._start is not None:
            self._start(self.address, block, num_threads, 0)
        else:
            self._call(block)


def _makers() -> dict[str, Callable[..., Any]]:
    """Return the functions that define the kernels, by kernel name. Imports numba."""
    from inference_server.kernels.jit import program_runner
    from inference_server.kernels.simd import decode_attention, norm_rope

    return {
        "rms_norm": norm_rope.make_rms_norm,
        "add_rms_norm": norm_rope.make_add_rms_norm,
        "silu_mul": norm_rope.make_silu_mul,
        "rope_and_write": norm_rope.make_rope_and_write,
        "decode_attention": decode_attention.make_attention,
        "program": program_runner.make_program,
    }


@cache
def kernel(name: str, *is_bf16: bool) -> Kernel | None:
    """Return a kernel of the table above, or None if kernels cannot be compiled here, which is logged once.

    Args:
        name: A key of the table.
        is_bf16: For each tensor type the kernel is specialised for, True for bfloat16 and False for float32.
    """
    global _is_broken
    if _is_broken:
        return None
    try:
        file_name = "-".join([name, *("bf16" if bf16 else "float32" for bf16 in is_bf16)])
        return load_kernel(file_name, lambda: _makers()[name](*is_bf16))
    except Exception as error:  # torch's operations replace the kernels after any error
        _is_broken = True
        message = "compiled kernels are not available, so torch's slower operations replace them: %s: %s"
        logger.warning(message, type(error).__name__, error)
        return None


def load_kernel(file_name: str, make: Callable[[], Any]) -> Kernel:
    """Load a kernel from the cache folder, or compile the function that `make` returns and keep it there.

    Raises:
        Exception: numba or llvmlite is missing, or cannot compile the function.
    """
    from inference_server.kernels.jit import object_cache

    return Kernel(object_cache.entry(file_name, make, object_cache.default_folder()))
