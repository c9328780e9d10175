"""Loads or compiles a kernel when it is first needed, and runs it on one thread or on several."""

import ctypes
import logging
from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from inference_server.kernels.emit.block_words import SLEEP_WORD, THREADS_WORD
from inference_server.kernels.isa.choice import chosen, obstacle
from inference_server.kernels.jit.arguments import BLOCK_BYTES
from inference_server.kernels.jit.openmp import find_start, sleep_function

if TYPE_CHECKING:
    from inference_server.kernels.emit.module import Emit
    from inference_server.kernels.isa.instruction_set import InstructionSet

logger = logging.getLogger(__name__)

# With less work than this, waking a second thread costs more time than it saves. The GIL is then kept as well,
# because acquiring it again could take longer than the kernel.
_SMALL_NS = 8_000

ENOUGH_NS = 1 << 40  # a duration so long that all threads are used

_Block: Any = ctypes.c_int64 * (BLOCK_BYTES // 8)
_is_broken = False


class Kernel:
    """A compiled function whose only argument is the address of an argument block (see arguments.py)."""

    def __init__(self, address: int) -> None:
        """Create the kernel for the machine code at `address`, which must stay loaded."""
        self.address = address
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self._call_with_lock = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(address)
        self._start = find_start()

    def run(self, arguments: bytes, num_items: int, nanoseconds: int) -> None:
        """Run the kernel once and wait until it has finished.

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
            block[SLEEP_WORD] = sleep_function()
            block[THREADS_WORD] = num_threads
            self._start(self.address, block, num_threads, 0)
        else:
            self._call(block)


def makers() -> "dict[str, Callable[..., Emit]]":
    """Return the functions that define the kernels, by kernel name."""
    from inference_server.kernels.attention import decode, prefill
    from inference_server.kernels.jit import program_runner
    from inference_server.kernels.linear import bf16, int4, int4_widened, int8, lora, stored, stored_int4
    from inference_server.kernels.linear.layer import OutputFormat
    from inference_server.kernels.rows import norms, rope, silu
    from inference_server.kernels.sampling import sample_rows

    return {
        "rms_norm": norms.make_rms_norm,
        "add_rms_norm": norms.make_add_rms_norm,
        "rope_and_write": partial(rope.make_rope_and_write, False),
        "norm_rope_and_write": partial(rope.make_rope_and_write, True),
        "decode_attention": decode.make_decode_attention,
        "prefill_attention": prefill.make_prefill_attention,
        "program": program_runner.make_program,
        "silu_mul": silu.make_silu_mul,
        "sample_rows": sample_rows.make_sample_rows,
        "linear-bf16": partial(bf16.make_bf16, OutputFormat(is_bf16=True)),
        "linear-bf16-head": partial(bf16.make_bf16, OutputFormat(is_rounded=True)),
        "linear-bf16-gated": partial(bf16.make_bf16, OutputFormat(is_bf16=True, is_gated=True)),
        "linear-int8": partial(int8.make_int8, False),
        "linear-int8-gated": partial(int8.make_int8, True),
        "linear-int4": partial(int4.make_int4, False),
        "linear-int4-gated": partial(int4.make_int4, True),
        "linear-int4-widened": partial(int4_widened.make_int4_widened, False),
        "linear-int4-widened-gated": partial(int4_widened.make_int4_widened, True),
        "lora": partial(lora.make_lora, False),
        "lora-gated": partial(lora.make_lora, True),
        **{f"{name}-int8": partial(stored.make_int8, name, False) for name in stored.FORMATS},
        **{f"{name}-int8-bitsandbytes": partial(stored.make_int8, name, True) for name in stored.FORMATS},
        **{f"{name}-bf16": partial(stored.make_bf16, name) for name in stored.FORMATS},
        **{f"{name}-int4": partial(stored_int4.make_int4, name) for name in stored_int4.READERS},
        **{f"{name}-rows": partial(stored.make_rows, name) for name in stored.FORMATS},
    }


def kernel(name: str, *is_bf16: bool, isa: "InstructionSet | None" = None) -> Kernel | None:
    """Return a kernel of `makers`, or None if kernels cannot be compiled here, which is logged once.

    Args:
        name: A key of `makers()`.
        is_bf16: For each tensor type the kernel is specialised for, True for bfloat16 and False for float32.
        isa: The instruction set; by default the one that `choice.chosen` returns.

    Raises:
        ValueError: TAILRACE_CPU_FEATURES names an instruction set that this CPU lacks.
    """
    isa = isa or chosen()
    if isa is None:
        _log_missing()
        return None
    return _kernel(isa, name, *is_bf16)


def variant_name(name: str, is_bf16: Items[bool]) -> str:
    """Return the name of a kernel that is specialised for these tensor types, for example "rms_norm-bf16"."""
    return "-".join([name, *("bf16" if bf16 else "float32" for bf16 in is_bf16)])


@cache
def _log_missing() -> None:
    """Log once why torch's operations replace the kernels."""
    message = "compiled kernels are not available, so torch's slower operations replace them: %s"
    logger.warning(message, obstacle())


@cache
def _kernel(isa: "InstructionSet", name: str, *is_bf16: bool) -> Kernel | None:
    global _is_broken
    if _is_broken:
        return None
    file_name = variant_name(name, is_bf16)
    try:
        from inference_server.kernels.jit import object_cache

        address = object_cache.entry(file_name, lambda: makers()[name](*is_bf16), isa, object_cache.default_folder())
        return Kernel(address)
    except Exception as error:  # torch's operations replace the kernels after any error
        _is_broken = True
        message = "compiled kernels are not available, so torch's slower operations replace them: %s: %s"
        logger.warning(message, type(error).__name__, error)
        return None
