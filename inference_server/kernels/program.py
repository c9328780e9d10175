"""Many kernels as one: recorded once, then run as often as wanted without Python in between."""

from struct import Struct
from typing import Any

import torch

from inference_server.kernels.arguments import BLOCK_BYTES
from inference_server.kernels.compiled import ENOUGH_NS, Kernel, kernel
from inference_server.kernels.parallel import thread_functions

_pack = Struct(f"7q{BLOCK_BYTES - 56}x").pack


class Program:
    """Kernels with fixed arguments: what they read and write must stay where it is. Not for several threads at once."""

    def __init__(self, steps: list[tuple[Kernel, bytes]], keep: Any) -> None:
        """`steps`: kernels and their arguments (arguments.py), in order. `keep`: what must live as long as this.

        Raises RuntimeError where nothing can be compiled.
        """
        runner = kernel("steps.all")
        if runner is None:
            raise RuntimeError("no kernels")
        self._runner, self._keep = runner, keep
        self._blocks = torch.frombuffer(bytearray(b"".join(words for _, words in steps)), dtype=torch.int64).clone()
        first = self._blocks.data_ptr()
        pairs = [(each.address, first + index * BLOCK_BYTES) for index, (each, _) in enumerate(steps)]
        self._steps = torch.tensor(pairs, dtype=torch.int64)
        self._num_steps = len(steps)
        self._functions = thread_functions()

    def run(self) -> None:
        words = _pack(0, 0, 0, self._steps.data_ptr(), self._num_steps, *self._functions)
        self._runner.run(words, torch.get_num_threads(), ENOUGH_NS)
