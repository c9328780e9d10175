"""Combines the logits of a step with their sequences, and samples a token for each row."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server.engine.native.sampler import Row, Sample, sample
from inference_server.engine.sequence import Sequence
from inference_server.text.grammar import GrammarError


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits of the sequences that get a token in this step.

    Attributes:
        rows: float32, shape (len(seqs), vocab_size).
        seqs: The sequence of each row.
        ahead: For each row, the draft tokens between the sequence's newest token and the row's position; None: all 0.
    """

    rows: Tensor
    seqs: list[Sequence]
    ahead: list[int] | None = None

    def without(self, bad: Collection[int]) -> "Logits":
        """Return a copy without some rows and their sequences. `ahead` must be None."""
        kept = [row for row in range(len(self.seqs)) if row not in bad]
        return Logits(self.rows[kept], [self.seqs[row] for row in kept])


class GrammarLimit(Exception):
    """The grammar of a sequence exceeds its limits. `rows`: a list with the index of the sequence's row."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.rows = [row]


def sample_tokens(logits: Logits) -> list[Sample]:
    """Choose a token for each row.

    Raises:
        NotFinite: Rows of logits cannot be sampled. The logits are unchanged.
        GrammarLimit: A grammar exceeds its limits. The logits are unchanged.
    """
    ahead = logits.ahead or [0] * len(logits.seqs)
    return sample(logits.rows, [_row(index, seq, ahead[index]) for index, seq in enumerate(logits.seqs)])


def _row(index: int, seq: Sequence, num_ahead: int) -> Row:
    constraint = seq.request.constraint
    try:
        allowed = None if constraint is None else torch.from_numpy(constraint.allowed())
    except GrammarError as error:
        raise GrammarLimit(index, str(error)) from error
    return Row(seq.request.sampling, len(seq.token_ids) + num_ahead, seq.penalties, allowed)
