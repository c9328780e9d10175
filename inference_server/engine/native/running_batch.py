"""Tracks the sequences of successive decode steps, with the values that change from step to step.

A step may be launched before the tokens of the previous step are known. So this module counts positions and remaining
tokens per launched step, and does not read them from the sequences. numpy updates all rows at once, because a Python
loop over the rows would take too long.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.sequence import Sequence
from inference_server.model.runner import NextToken


class RunningBatch:
    """The batch of one launched decode step.

    Attributes:
        seqs: One sequence for each row.
        tokens: The tokens to compute. The next step changes and reuses these objects.
    """

    def __init__(self, seqs: list[Sequence], tokens: list[NextToken], num_left: NDArray[np.int64]) -> None:
        """Create a batch.

        Args:
            seqs: The sequences.
            tokens: The token of each sequence that the step computes.
            num_left: Tokens that each reply may still get after the one that the step samples.
        """
        self.seqs = seqs
        self.tokens = tokens
        self._num_left = num_left
        self._positions = np.array([token.position for token in tokens], np.int64)
        self._num_blocks = np.array([len(seq.block_ids) for seq in seqs], np.int64)
        self._refers_to_itself = False  # True if the token ids refer to the rows of this batch's previous step

    @classmethod
    def first(cls, seqs: list[Sequence]) -> "RunningBatch":
        """Return the batch of a step that follows no step in flight, so that all tokens of its sequences are known."""
        tokens = [NextToken(seq.block_ids, seq.num_computed, seq.token_ids[-1], seq.request.adapter) for seq in seqs]
        num_left = np.array([seq.request.max_tokens - seq.num_completion_tokens - 1 for seq in seqs], np.int64)
        return cls(seqs, tokens, num_left)

    def next(self, scheduler: Scheduler, *, has_changed: bool) -> "RunningBatch | None":
        """Return the batch of the next step, which computes the tokens that this step samples.

        Sequences that reach their largest length with this step, or were removed from the scheduler, have no row in the
        next batch.

        Args:
            scheduler: Allocates the blocks of the next tokens.
            has_changed: Sequences may have been removed since this batch was created.

        Returns:
            This batch with updated values, or a new batch with fewer rows; None if no row is left or blocks ran out.
        """
        batch = self._without_ended() if has_changed or self._num_left.min() <= 0 else self
        if batch is self and not self._refers_to_itself:
            self._refers_to_itself = True
            for row, token in enumerate(self.tokens):
                token.token_id = -row - 1
        return batch if batch is not None and batch._advance(scheduler) else None

    def _without_ended(self) -> "RunningBatch | None":
        # A sequence that has no blocks has been removed from the scheduler.
        kept = [row for row, seq in enumerate(self.seqs) if seq.block_ids and self._num_left[row] > 0]
        if len(kept) == len(self.seqs):
            return self
        if not kept:
            return None
        tokens = [replace(self.tokens[row], token_id=-row - 1) for row in kept]
        return RunningBatch([self.seqs[row] for row in kept], tokens, self._num_left[kept])

    def _advance(self, scheduler: Scheduler) -> bool:
        self._positions += 1
        self._num_left -= 1
        lacking = (self._positions >= self._num_blocks * scheduler.block_size).nonzero()[0]
        if len(lacking):
            if not scheduler.extend([self.seqs[row] for row in lacking]):
                return False
            self._num_blocks[lacking] += 1
        for token in self.tokens:
            token.position += 1
        return True
