"""Emits code that waits for other threads: spins for a moment, then sleeps for short times until a condition is true.

A thread that the others wait for may have lost its core to another process. Sleeping frees a core for this thread or
this process.
"""

from collections.abc import Callable

from inference_server.kernels.emit.block_words import SLEEP_WORD
from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.values import Condition, Int

# Pauses before the first sleep. They take 25 us on an AMD EPYC (Zen 4), longer than most waits at the end of a kernel.
_PAUSES = 1_000
# Linux extends each sleep by its timer slack, about 50 us.
_SLEEP_MICROSECONDS = 20


def wait_until_done(code: Code, counter: Int, wanted: Int | int) -> None:
    """Emit a loop that waits until the counter at this address has reached `wanted`. See `wait_until`."""
    wait_until(code, lambda: code.num_done(counter) >= wanted)


def wait_until(code: Code, condition: Callable[[], Condition]) -> None:
    """Emit a loop that evaluates the condition until it is true.

    Raises:
        ValueError: `code` is not that of a kernel, but of a function that a kernel calls.
    """
    if code.block is None:
        raise ValueError("a function that a kernel calls cannot wait: it lacks the address of the argument block")
    sleep = code.argument(code.block, SLEEP_WORD)
    spins_only = sleep.equals(0)
    pauses = code.variable(code.integer(0))
    with code.repeat_while(lambda: ~condition()), code.either(spins_only | (pauses.get() < _PAUSES)) as cases:
        on_spin, on_sleep = cases
        with on_spin:
            pauses.set(pauses.get() + 1)
            code.isa.pause(code)
        with on_sleep:
            code.call_address(sleep, code.integer(_SLEEP_MICROSECONDS), returns_int=True)
