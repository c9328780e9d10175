"""Makes the memory of a simulated GPU run out at a chosen operator of a chosen phase of the engine's thread."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_server.model.runner import ModelRunner
from tests.support.rehearsal.gpu import SimulatedGpu

PASSES = ("prefill", "decode", "mixed")
PHASES = (*PASSES, "sampling")


class Fault:
    """An error that one operator raises, once.

    Attributes:
        has_happened: True after the error was raised.
    """

    def __init__(self, gpu: SimulatedGpu, patch: pytest.MonkeyPatch) -> None:
        """Watch the phases of engines of `gpu`. `patch` restores the runner."""
        self.has_happened = False
        self._phase: str | None = None
        self._countdown = 0
        self._thread = threading.local()
        gpu.before_operator = self._before_operator
        for name in PASSES:
            patch.setattr(ModelRunner, name, self._watched(name, getattr(ModelRunner, name)))

    def arm(self, phase: str, countdown: int) -> None:
        """Raise torch.OutOfMemoryError at the operator number `countdown`, from 0, of the next passes of a phase.

        The phase "sampling" is all work of the engine's thread outside the runner's passes.
        """
        self.has_happened, self._phase, self._countdown = False, phase, countdown

    def disarm(self) -> None:
        """Raise no more errors."""
        self._phase = None

    def _watched(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            before = getattr(self._thread, "phase", None)
            self._thread.phase = name
            try:
                return method(*args, **options)
            finally:
                self._thread.phase = before

        return run

    def _before_operator(self, name: str) -> None:
        if self._phase is None or threading.current_thread().name != "model":
            return
        if (getattr(self._thread, "phase", None) or "sampling") == self._phase:
            self._countdown -= 1
            if self._countdown < 0:
                self._phase, self.has_happened = None, True
                raise torch.OutOfMemoryError(f"CUDA out of memory. (rehearsed, before {name})")
