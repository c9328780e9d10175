"""Types of the GPU checks. A check is a function that records figures, and fails by raising an exception."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

# Records one figure of the running check under a name. The figure is written to disk immediately.
Note = Callable[[str, Any], None]


class LeftOut(Exception):
    """A check cannot run here. The message is the reason."""


class Mismatch(Exception):
    """Two results that must be equal differ. The message contains the difference."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The device, the model and the reply length of the checks.

    Attributes:
        device: The first GPU, or the CPU.
        shapes: The model whose shapes are measured, a key of models.SHAPES.
        path: Folder or hub id of real weights; None for random weights.
        tokens: Length of every measured reply, in tokens.
    """

    device: torch.device
    shapes: str
    path: str | None = None
    tokens: int = 128

    @property
    def is_cuda(self) -> bool:
        """True on a GPU."""
        return self.device.type == "cuda"

    @property
    def is_tiny(self) -> bool:
        """True for a tiny model, which only tests that the checks run."""
        return self.shapes == "tiny"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations: float16, or bfloat16 on a CPU."""
        return torch.float16 if self.is_cuda else torch.bfloat16

    def need_cuda(self) -> None:
        """Raise LeftOut on a machine without a GPU."""
        if not self.is_cuda:
            raise LeftOut("needs a GPU")

    def wait(self) -> None:
        """Wait for the GPU's queued work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


class Check(NamedTuple):
    """A check of a part. `seconds`: its time limit."""

    name: str
    seconds: float
    run: Callable[[Setup, Note], None]
