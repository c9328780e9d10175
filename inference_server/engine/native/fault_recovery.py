"""Recovers from failed forward passes: fails the sequences of the pass, or preempts them if memory ran out.

A failure must not affect other sequences. If the model cannot compute a single token after a failure, it is
permanently broken. Used on the engine's thread only.
"""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.sequence import Sequence
from inference_server.errors import GenerationFailed
from inference_server.generation import Event, Failed
from inference_server.model.runner import ModelRunner

logger = logging.getLogger(__name__)

Emit = Callable[[Sequence, Event], None]
_Result = TypeVar("_Result")


class FaultRecovery:
    """Handler of exceptions in a step.

    Attributes:
        is_broken: True if the model can no longer compute even a single token.
    """

    def __init__(self, runner: ModelRunner, scheduler: Scheduler, emit: Emit) -> None:
        """Create a handler for the scheduler's sequences.

        `emit`: called with the Failed event of each failed sequence.
        """
        self._runner = runner
        self._scheduler = scheduler
        self._emit = emit
        self.is_broken = False

    def attempt(self, forward: Callable[[], _Result], what: str) -> _Result | None:
        """Return the result of a forward pass that can be divided into smaller ones, or None if it failed.

        A failure here does not fail any sequence yet. The caller then runs smaller passes, which show which sequences
        fail.

        Args:
            forward: Runs the pass.
            what: The content of the pass, for the log: "decoded tokens and prompts".
        """
        try:
            return forward()
        except Exception:
            logger.exception("a forward pass of %s failed: smaller passes follow", what)
            return None

    def pass_failed(self, seqs: list[Sequence], error: Exception) -> None:
        """Fail the sequences of a forward pass that raised `error`, or preempt them if memory ran out."""
        if _is_out_of_memory(error) and self._preempt(seqs):
            return
        # Clients get an answer after any exception, and the other sequences continue.
        logger.error("a forward pass failed; requests %s", _request_ids(seqs), exc_info=error)
        self.is_broken = self.is_broken or self._fail_and_probe(seqs)

    def sampling_failed(self, seqs: list[Sequence]) -> None:
        """Fail sequences for which no token can be chosen."""
        logger.error("no token can be chosen for requests %s", _request_ids(seqs))
        self._fail(seqs)

    def _preempt(self, seqs: list[Sequence]) -> bool:
        """Release cached memory and preempt sequences. Returns False if the limit is already one running sequence."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        num_running = len(self._scheduler.running)
        if not self._scheduler.shrink(seqs):
            return False
        logger.warning("memory ran out with %d sequences: fewer sequences run for some time", num_running)
        return True

    def _fail_and_probe(self, seqs: list[Sequence]) -> bool:
        """Fail the sequences, then compute one token without a sequence. Returns True if this computation fails."""
        try:
            self._fail(seqs)
            self._runner.probe()
        except Exception:
            logger.exception("the model cannot compute a single token any more")
            return True
        return False

    def _fail(self, seqs: Iterable[Sequence]) -> None:
        for seq in seqs:
            if seq in self._scheduler.running:  # a sequence may have ended before the failure
                self._scheduler.discard(seq)
                self._emit(seq, Failed(GenerationFailed("the model failed on this request")))


# Parts of out-of-memory messages of a RuntimeError: from torch's CPU allocator, from the CUDA driver, and from
# libraries with their own allocators.
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY)


def _request_ids(seqs: list[Sequence]) -> list[str]:
    return [seq.request.request_id for seq in seqs]
