"""Runs a forward pass as a list of kernel calls, which is built once, without Python between the calls."""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any

import torch

from inference_server.kernels.emit.block_words import SLEEP_WORD, THREADS_WORD
from inference_server.kernels.jit.arguments import BLOCK_BYTES
from inference_server.kernels.jit.kernel import ENOUGH_NS, Kernel, kernel
from inference_server.kernels.jit.openmp import sleep_function, thread_counter

_pack = Struct(f"6q{BLOCK_BYTES - 48}x").pack
_WORDS = BLOCK_BYTES // 8


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A kernel with its argument block, one entry of a Program."""

    kernel: Kernel
    block: bytes  # built by arguments.py
    rows_at: int | None = None  # the word of the block with the number of rows; None if it has none
    plan: Callable[[int], Kernel] | None = None  # chooses the kernel for a number of rows (linear layers)
    is_decode: bool = False  # covers only the rows of the decoded sequences, which come first


class Program:
    """A list of kernel calls over tensors at fixed addresses. Not thread-safe."""

    def __init__(self, calls: list[KernelCall], keep: Any) -> None:
        """Build the argument blocks of all calls.

        Args:
            calls: The kernel calls in order.
            keep: The owner of the tensors, kept alive as long as this program.

        Raises:
            RuntimeError: Kernels cannot be compiled here.
        """
        runner = kernel("program")
        if runner is None:
            raise RuntimeError("the kernel that runs kernel programs cannot be compiled")
        self._runner, self._keep = runner, keep
        self._blocks = torch.frombuffer(bytearray(b"".join(call.block for call in calls)), dtype=torch.int64).clone()
        self._blocks[SLEEP_WORD::_WORDS] = sleep_function()
        first = self._blocks.data_ptr()
        pairs = [(call.kernel.address, first + index * BLOCK_BYTES) for index, call in enumerate(calls)]
        self._calls = torch.tensor(pairs, dtype=torch.int64)
        self._rows_at, self._decoded_at = (_rows_at(calls, is_decode) for is_decode in (False, True))
        self._plans = [call.plan for call in calls if call.plan is not None]
        planned = [index for index, call in enumerate(calls) if call.plan is not None]
        self._planned = torch.tensor(planned, dtype=torch.int64)
        # The numbers that the blocks contain at present: rows, decoded rows, threads.
        self._set_for: tuple[int, int, int] | None = None

    def run(self, num_rows: int, num_decoded: int) -> None:
        """Run all kernels in order over the first `num_rows` rows of their inputs.

        The first `num_decoded` of these rows are decoded tokens, the others are prompt tokens.
        """
        wanted = (num_rows, num_decoded, torch.get_num_threads())
        if wanted != self._set_for:
            self._set(*wanted)
        block = _pack(0, 0, 0, self._calls.data_ptr(), len(self._calls), thread_counter())
        self._runner.run(block, wanted[2], ENOUGH_NS)

    def _set(self, num_rows: int, num_decoded: int, num_threads: int) -> None:
        self._blocks[self._rows_at] = num_rows
        self._blocks[self._decoded_at] = num_decoded
        self._blocks[THREADS_WORD::_WORDS] = num_threads
        addresses = [plan(num_rows).address for plan in self._plans]
        self._calls[self._planned, 0] = torch.tensor(addresses, dtype=torch.int64)
        self._set_for = (num_rows, num_decoded, num_threads)


def _rows_at(calls: list[KernelCall], is_decode: bool) -> torch.Tensor:
    """Return the index of each word that contains a call's number of rows, counted in words from the first block.

    `is_decode`: True for the calls that cover decoded tokens only, False for the others.
    """
    places = [(index * _WORDS, call) for index, call in enumerate(calls) if call.is_decode is is_decode]
    return torch.tensor([at + call.rows_at for at, call in places if call.rows_at is not None], dtype=torch.int64)
