"""The kernel that runs kernels: a list of them, one after the other, by threads that are started once.

A block of int64 tells the work: 0 arrivals at the ends of steps, 3 the list (function, block of each), 4 its length,
5 the function that counts the threads, or 0 for one thread, 6 the function that lets another process run, or 0.
Counters of a block that is done are set to zero, so that the same list can be run again.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from llvmlite import binding, ir
from numba import types

from inference_server.kernels.simd.vectors import argument, helper, intrinsic_of, load_int64, pointer, store_int64

_int64, _int32 = ir.IntType(64), ir.IntType(32)
_IS_X86 = binding.get_process_triple().startswith("x86_64")
_PATIENCE = 2_000  # pauses, some 100 us: about as long as a step that another thread has just begun


@intrinsic_of(types.void, types.int64, types.int64)
def _run(builder: Any, function: Any, block: Any) -> None:
    builder.call(pointer(builder, function, ir.FunctionType(ir.VoidType(), [_int64])), [block])


@intrinsic_of(types.int64, types.int64)
def _call(builder: Any, function: Any) -> Any:
    """Of a C function without arguments that returns an int."""
    return builder.sext(builder.call(pointer(builder, function, ir.FunctionType(_int32, [])), []), _int64)


@intrinsic_of(types.int64, types.int64)
def _arrive(builder: Any, address: Any) -> Any:
    """Counts, after everything this thread has written, and returns how many there are now."""
    one = ir.Constant(_int64, 1)
    return builder.add(builder.atomic_rmw("add", pointer(builder, address, _int64), one, "acq_rel"), one)


@intrinsic_of(types.int64, types.int64)
def _arrivals(builder: Any, address: Any) -> Any:
    return builder.load_atomic(pointer(builder, address, _int64), "acquire", 8)


@intrinsic_of(types.void)
def _pause(builder: Any) -> None:
    if _IS_X86:
        form = ir.FunctionType(ir.VoidType(), [])
        name = "llvm.x86.sse2.pause"
        builder.call(builder.module.globals.get(name) or ir.Function(builder.module, form, name), [])


@helper
def _wait(counter, wanted, let_others):
    patience = _PATIENCE
    while _arrivals(counter) < wanted:
        if patience > 0 or let_others == 0:
            patience -= 1
            _pause()
        else:
            _call(let_others)


def make_all() -> Any:
    def run_all(block):
        steps, num_steps = argument(block, 3), argument(block, 4)
        count_threads, let_others = argument(block, 5), argument(block, 6)
        num_threads = 1
        if count_threads != 0:
            num_threads = _call(count_threads)
        for index in range(num_steps):
            step = load_int64(steps + index * 16 + 8)
            _run(load_int64(steps + index * 16), step)
            wanted = (index + 1) * num_threads
            if _arrive(block) == wanted:
                for counter in range(0, 24, 8):
                    store_int64(step + counter, 0)
            else:
                _wait(block, wanted, let_others)

    return run_all
