"""Emits the kernel that runs a kernel program: it calls a list of kernels in order, on threads that are started once.

All threads call every kernel, and share its work items. A thread that finds no further item waits until no other thread
is inside the kernel, so the next kernel reads finished results. The thread does not wait for threads that have yet to
call the kernel, because they will find no item. So a thread that starts late, or whose core runs another process,
delays the others only if it holds an item. Kernels must permit this: a late thread may change nothing but the counters
of items taken.

The argument block (int64 words):

- word 0: threads that have finished the program
- word 3: address of the list: for each kernel the addresses of its function and of its argument block
- word 4: length of the list
- word 5: address of the C function that returns the number of threads, or 0 for one thread

Word 23 of each kernel's own argument block counts the threads inside it. The last thread to finish the program sets the
kernels' own three counters to zero, so that the program can run again.
"""

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.types import INT64
from inference_server.kernels.emit.values import Int
from inference_server.kernels.emit.waiting import wait_until

_INSIDE_WORD = 23


def _number_of_threads(code: Code, function: Int) -> Int:
    """Return the result of the C function at this address, or 1 if the address is 0."""
    result = code.variable(code.integer(1))
    with code.when(function > 0):
        result.set(code.call_address(function, returns_int=True) or code.integer(1))
    number: Int = result.get()
    return number


def _run_call(code: Code, call: Int) -> None:
    """Run the kernel of one entry of the list. Returns when no thread is inside it."""
    block = code.load_int64(call + 8)
    inside = block + 8 * _INSIDE_WORD
    code.count(inside)
    code.call_address(code.load_int64(call), block)
    with code.when(code.count(inside, -1) > 1):
        wait_until(code, lambda: code.num_done(inside).equals(0))


def make_program() -> Emit:
    """Return the function that emits the kernel `program`."""

    def run_program(code: Code, block: Int) -> None:
        first, num_calls = code.argument(block, 3), code.argument(block, 4)
        num_threads = _number_of_threads(code, code.argument(block, 5))
        with code.loop(first, first + num_calls * 16, 16) as call:
            _run_call(code, call)
        with code.when((code.count_done(block) + 1).equals(num_threads)):
            zeros = code.ints(0, 3, INT64)
            with code.loop(first, first + num_calls * 16, 16) as call:
                code.store(zeros, code.load_int64(call + 8), 8)

    return run_program
