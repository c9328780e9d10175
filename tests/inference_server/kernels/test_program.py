"""The kernel that runs kernel programs: the order of the kernels, and threads that are late or lack a core."""

import ctypes
import threading
import time

import pytest
import torch
from torch import Tensor

from inference_server.kernels.emit.waiting import SLEEP_WORD
from inference_server.kernels.jit import arguments, openmp
from inference_server.kernels.jit.arguments import BLOCK_BYTES
from inference_server.kernels.jit.kernel import Kernel, kernel
from inference_server.kernels.jit.program import KernelCall, Program

_ROWS, _STEPS = 40, 100
_Block = ctypes.c_int64 * (BLOCK_BYTES // 8)


class Sums:
    """A program that adds 1 to x (_ROWS, 16) in every even kernel and x to y in every odd one."""

    def __init__(self) -> None:
        function = kernel("add_rms_norm", False)
        assert function is not None
        self._function = function
        self.x, self.y = torch.zeros(_ROWS, 16), torch.zeros(_ROWS, 16)
        self._ones, self._scratch = torch.ones(_ROWS, 16), torch.empty(_ROWS, 16)
        self.calls = [self._add(*pair) for pair in ((self.x, self._ones), (self.y, self.x)) * _STEPS]

    def _add(self, target: Tensor, delta: Tensor) -> KernelCall:
        block = arguments.add_rms_norm(target, delta, self._ones[0], self._scratch, 1e-5)
        return KernelCall(self._function, block, arguments.ADD_RMS_NORM_ROWS)

    def assert_runs(self, num_runs: int) -> None:
        steps = num_runs * _STEPS
        assert torch.equal(self.x, torch.full_like(self.x, steps))
        assert torch.equal(self.y, torch.full_like(self.y, steps * (steps + 1) // 2))


@pytest.fixture
def many_threads():
    """Let torch use more threads than this machine has cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 * before + 3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("many_threads")
def test_kernels_run_in_order_on_more_threads_than_cores():
    sums = Sums()
    program = Program(sums.calls, sums)
    for run in range(3):
        program.run(_ROWS, 0)
        sums.assert_runs(run + 1)


def runner_of(calls: list[KernelCall], num_threads: int):
    """A function that runs the calls on the thread that calls it, as one of `num_threads` threads, and their blocks."""
    count = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: num_threads)
    blocks = [_Block.from_buffer_copy(call.block) for call in calls]
    for block in blocks:
        block[SLEEP_WORD] = openmp.sleep_function()
    pairs = [(call.kernel.address, ctypes.addressof(block)) for call, block in zip(calls, blocks, strict=True)]
    entries = torch.tensor(pairs, dtype=torch.int64)
    own = _Block(0, 0, 0, entries.data_ptr(), len(calls), ctypes.cast(count, ctypes.c_void_p).value)
    program = kernel("program")
    assert program is not None
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(program.address)

    def run(_keep: object = (count, entries)) -> None:
        function(own)

    return run, blocks


def test_a_late_thread_neither_delays_nor_repeats_the_work_of_the_others():
    sums = Sums()
    run, blocks = runner_of(sums.calls, num_threads=2)
    run()
    sums.assert_runs(1)  # though the second thread has yet to start
    run()
    sums.assert_runs(1)
    assert all(block[:3] == [0, 0, 0] and block[23] == 0 for block in blocks)  # ready for the next run


def test_a_thread_waits_for_the_work_of_another_thread_in_the_same_kernel():
    entered, finished, seen = threading.Event(), threading.Event(), []

    def work(_block: int) -> None:
        if not entered.is_set():
            entered.set()
            time.sleep(0.05)
            finished.set()

    def follow(_block: int) -> None:
        seen.append(finished.is_set())

    callbacks = [ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function) for function in (work, follow)]
    addresses = [ctypes.cast(callback, ctypes.c_void_p).value or 0 for callback in callbacks]
    run, _ = runner_of([KernelCall(Kernel(address), bytes(BLOCK_BYTES)) for address in addresses], num_threads=2)
    first, second = threading.Thread(target=run), threading.Thread(target=run)
    first.start()
    assert entered.wait(10)
    second.start()
    for thread in (first, second):
        thread.join(10)
        assert not thread.is_alive()
    assert seen == [True, True]
