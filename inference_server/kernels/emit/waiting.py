"""Emits how a thread waits for other threads: it spins for a moment, then sleeps for short times until it can go on.

A thread that others wait for may have lost its core to another process. A waiting thread that sleeps gives its own core to
that thread or to the process.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llvmlite import ir

from inference_server.kernels.emit.values import INT32, Condition, call_intrinsic

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code

# A pause takes about 15 to 50 ns. A thread spins longer than threads usually wait for each other at the end of a kernel.
_PAUSES = 2_000
# Linux adds about 50 us (its timer slack) to each sleep.
_SLEEP_MICROSECONDS = 20


def wait_until(code: "Code", condition: Callable[[], Condition]) -> None:
    """Emit a wait until the condition, which is evaluated again and again, is true."""
    pauses = code.variable(code.integer(0))
    with code.repeat_while(lambda: ~condition()), code.either(pauses.get() < _PAUSES) as (spins, sleeps):
        with spins:
            pauses.set(pauses.get() + 1)
            code.isa.pause(code)
        with sleeps:
            _sleep(code)


def _sleep(code: "Code") -> None:
    """Sleep with the C library's usleep. Windows lacks it; kernels run on a single thread there (jit/openmp.py)."""
    if "windows" not in str(code.builder.module.triple):
        call_intrinsic(code.builder, "usleep", INT32, ir.Constant(INT32, _SLEEP_MICROSECONDS))
