"""Many kernels as one: listed once, then run as often as wanted without Python in between."""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any

import torch

from inference_server.kernels.jit.arguments import BLOCK_BYTES, LINEAR_SHAPES
from inference_server.kernels.jit.kernel import ENOUGH_NS, Kernel, kernel
from inference_server.kernels.jit.openmp import thread_functions

_pack = Struct(f"7q{BLOCK_BYTES - 56}x").pack
_WORDS = BLOCK_BYTES // 8


@dataclass(frozen=True, slots=True)
class Step:
    """A kernel and its arguments, both of arguments.py; `rows_at`: where these tell the number of rows, if they do, and
    `is_decode`: that it is the number of decoded rows, which are the first.

    `plan`: of a linear, the kernel and the shapes of tiles for a number of rows, where these depend on it.
    """

    kernel: Kernel
    words: bytes
    rows_at: int | None = None
    plan: Callable[[int], tuple[Kernel, torch.Tensor]] | None = None
    is_decode: bool = False


class Program:
    """Kernels with fixed addresses: what they read and write must stay where it is. Not for several threads at once."""

    def __init__(self, steps: list[Step], keep: Any) -> None:
        """`keep`: what must live as long as this. Raises RuntimeError where nothing can be compiled."""
        runner = kernel("steps.all")
        if runner is None:
            raise RuntimeError("no kernels")
        self._runner, self._keep = runner, keep
        self._blocks = torch.frombuffer(bytearray(b"".join(step.words for step in steps)), dtype=torch.int64).clone()
        first = self._blocks.data_ptr()
        pairs = [(step.kernel.address, first + index * BLOCK_BYTES) for index, step in enumerate(steps)]
        self._steps = torch.tensor(pairs, dtype=torch.int64)
        self._rows_at, self._decoded_at = (_rows_at(steps, is_decode) for is_decode in (False, True))
        self._plans = [(index, step.plan) for index, step in enumerate(steps) if step.plan is not None]
        self._num_rows = (0, 0)
        self._functions = thread_functions()

    def run(self, num_rows: int, num_decoded: int) -> None:
        """All kernels, in order, over the first `num_rows` rows of what they read, of which the first `num_decoded` are
        tokens that are decoded."""
        if (num_rows, num_decoded) != self._num_rows:
            self._set_rows(num_rows, num_decoded)
        words = _pack(0, 0, 0, self._steps.data_ptr(), len(self._steps), *self._functions)
        self._runner.run(words, torch.get_num_threads(), ENOUGH_NS)

    def _set_rows(self, num_rows: int, num_decoded: int) -> None:
        self._blocks[self._rows_at] = num_rows
        self._blocks[self._decoded_at] = num_decoded
        planned = [(index, *plan(num_rows)) for index, plan in self._plans]
        at = torch.tensor([index for index, _, _ in planned], dtype=torch.int64)
        self._steps[at, 0] = torch.tensor([kernel.address for _, kernel, _ in planned], dtype=torch.int64)
        shapes = torch.tensor([shapes.data_ptr() for _, _, shapes in planned], dtype=torch.int64)
        self._blocks[at * _WORDS + LINEAR_SHAPES] = shapes
        self._num_rows = (num_rows, num_decoded)


def _rows_at(steps: list[Step], is_decode: bool) -> torch.Tensor:
    places = [(index * _WORDS, step) for index, step in enumerate(steps) if step.is_decode is is_decode]
    return torch.tensor([at + step.rows_at for at, step in places if step.rows_at is not None], dtype=torch.int64)
