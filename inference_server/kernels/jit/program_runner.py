"""The kernel that runs a kernel program: it calls a list of kernels in order, on threads that are started once.

All threads call every kernel; inside it, they share its work items. A barrier after each kernel ensures that the
next one reads finished results. The argument block (int64 words):

- word 0: arrivals: threads that have finished a kernel, counted over the whole program
- word 3: address of the list: for each kernel its function and the address of its argument block
- word 4: length of the list
- word 5: address of the C function that returns the number of threads, or 0 for one thread
- word 6: address of the C function that lets another process run, or 0

The last thread to arrive sets the kernel's own three counters to zero, so that the program can run again.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from llvmlite import ir
from numba import types

from inference_server.kernels.isa import cpu as isa
from inference_server.kernels.simd.memory import argument, load_int64, store_int64
from inference_server.kernels.simd.vectors import helper, intrinsic_of, pointer

_int64, _int32 = ir.IntType(64), ir.IntType(32)
_IS_X86 = isa.is_x86()
# Number of pauses before a waiting thread yields its core: about 100 µs, about as long as a short kernel.
_MAX_PAUSES = 2_000


@intrinsic_of(types.void, types.int64, types.int64)
def _run(builder: Any, function: Any, block: Any) -> None:
    """Call the kernel at address `function` with the argument block at address `block`."""
    builder.call(pointer(builder, function, ir.FunctionType(ir.VoidType(), [_int64])), [block])


@intrinsic_of(types.int64, types.int64)
def _call(builder: Any, function: Any) -> Any:
    """Call a C function without arguments and return its int."""
    return builder.sext(builder.call(pointer(builder, function, ir.FunctionType(_int32, [])), []), _int64)


@intrinsic_of(types.int64, types.int64)
def _arrive(builder: Any, address: Any) -> Any:
    """Count one arrival after all of this thread's writes, and return the new number of arrivals."""
    one = ir.Constant(_int64, 1)
    return builder.add(builder.atomic_rmw("add", pointer(builder, address, _int64), one, "acq_rel"), one)


@intrinsic_of(types.int64, types.int64)
def _arrivals(builder: Any, address: Any) -> Any:
    """Return the number of arrivals, and make the arrived threads' writes visible."""
    return builder.load_atomic(pointer(builder, address, _int64), "acquire", 8)


@intrinsic_of(types.void)
def _pause(builder: Any) -> None:
    """Wait about 50 ns without taking resources from the core's other thread (x86 only)."""
    if _IS_X86:
        signature = ir.FunctionType(ir.VoidType(), [])
        name = "llvm.x86.sse2.pause"
        builder.call(builder.module.globals.get(name) or ir.Function(builder.module, signature, name), [])


@helper
def _wait(counter, wanted, yield_cpu):
    """Wait until `wanted` threads have arrived."""
    pauses = _MAX_PAUSES
    while _arrivals(counter) < wanted:
        if pauses > 0 or yield_cpu == 0:
            pauses -= 1
            _pause()
        else:
            _call(yield_cpu)


def make_program() -> Any:
    """Return the function that runs a program."""

    def run_program(block):
        calls, num_calls = argument(block, 3), argument(block, 4)
        count_threads, yield_cpu = argument(block, 5), argument(block, 6)
        num_threads = 1
        if count_threads != 0:
            num_threads = _call(count_threads)
        for index in range(num_calls):
            call = load_int64(calls + index * 16 + 8)
            _run(load_int64(calls + index * 16), call)
            wanted = (index + 1) * num_threads
            if _arrive(block) == wanted:
                for counter in range(0, 24, 8):
                    store_int64(call + counter, 0)
            else:
                _wait(block, wanted, yield_cpu)

    return run_program
