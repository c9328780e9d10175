"""A forward pass on a CPU as a list of kernel programs with mixtures of experts between them.

The experts of a token are known only after its router has run. So a program ends before every mixture of experts, which
Python computes expert by expert.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inference_server.cpu.decoder_weights import ExpertWeights
from inference_server.kernels.jit.program import KernelCall, Program


@dataclass(frozen=True, slots=True)
class ExpertsStep:
    """A mixture of experts over tensors at fixed addresses."""

    weights: ExpertWeights
    x: Tensor  # (max_rows, hidden_size), the activations
    out: Tensor  # the same shape, overwritten

    def run(self, num_rows: int, num_decoded: int) -> None:
        """Compute the first `num_rows` rows. `num_decoded` has no effect."""
        rows = self.x[:num_rows]
        _, factors, chosen = self.weights.router(rows)
        self.out[:num_rows] = self.weights.experts(rows, chosen, factors)


class Steps:
    """Kernel calls, joined into the longest possible programs, with mixtures of experts between them."""

    def __init__(self, steps: Items[KernelCall | ExpertsStep], keep: Any) -> None:
        """Build the programs.

        Args:
            steps: The steps in order.
            keep: The owner of the tensors, kept alive as long as the programs.
        """
        self._parts: list[Program | ExpertsStep] = []
        calls: list[KernelCall] = []
        for step in [*steps, None]:
            if isinstance(step, KernelCall):
                calls.append(step)
                continue
            if calls:
                self._parts.append(Program(calls, keep))
                calls = []
            if step is not None:
                self._parts.append(step)

    def run(self, num_rows: int, num_decoded: int) -> None:
        """Run all steps over the first `num_rows` rows. See Program.run."""
        for part in self._parts:
            part.run(num_rows, num_decoded)
