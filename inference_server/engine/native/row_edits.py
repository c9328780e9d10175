"""Prepares the edits of logits for the sampling kernel: penalties, bias, and the tokens that a grammar allows."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inference_server.engine.native.penalties import ListedTokens, PenaltyState
from inference_server.engine.sequence import Penalties
from inference_server.generation import SamplingParams
from inference_server.kernels.sampling_calls import Edits


class EditedRow(Protocol):
    """The part of a row's sampling state that changes its logits; see sampler.Row."""

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters."""

    @property
    def penalties(self) -> Penalties | None:
        """A PenaltyState, or None."""

    @property
    def allowed(self) -> Tensor | None:
        """The mask of the tokens that a grammar allows, or None."""


@dataclass(frozen=True, slots=True)
class KeptLogits:
    """The penalised tokens of one row, and their logits before the penalties: float32 of shape (number of tokens,).

    The kernel gets only addresses, so this object keeps both arrays alive until the kernel has returned.
    """

    tokens: ListedTokens
    logits: Tensor

    def restore(self, row: Tensor) -> None:
        """Undo the penalties of a row of logits."""
        row[torch.frombuffer(self.tokens.ids, dtype=torch.int32).long()] = self.logits


def has_penalties_alone(row: EditedRow) -> bool:
    """Return True if neither a grammar nor a bias changes the row's logits."""
    return row.allowed is None and row.params.logit_bias is None


def edits_of(rows: Items[EditedRow], vocab_size: int) -> tuple[dict[int, Edits], dict[int, KeptLogits]]:
    """Return the edits of the rows' logits, and the penalised tokens with buffers for their logits, both by row index.

    Raises ValueError if a row's tensors or bias do not match the size of the vocabulary.
    """
    edits, kept = {}, {}
    for index, row in enumerate(rows):
        state = row.penalties if isinstance(row.penalties, PenaltyState) else None
        if state is None and has_penalties_alone(row):
            continue
        if state is not None:
            listed = state.listed()
            kept[index] = KeptLogits(listed, torch.empty(len(listed.ids)))
            tokens, counts = listed.ids.buffer_info(), listed.counts.buffer_info()
            penalties = tokens[0], counts[0], kept[index].logits.data_ptr(), tokens[1]
        else:
            penalties = 0, 0, 0, 0
        edits[index] = _edits(row, state, penalties, vocab_size)
    return edits, kept


def _edits(row: EditedRow, state: PenaltyState | None, penalties: tuple[int, int, int, int], vocab_size: int) -> Edits:
    """Return the edits of a row's logits. Raises ValueError if its tensors or bias do not match `vocab_size`.

    Args:
        row: Sampling state of the row.
        state: The row's penalty state, if it has one.
        penalties: The first fields of Edits: addresses of token ids, counts and kept logits, and the number of tokens.
        vocab_size: Number of logits in the row.
    """
    tensors = [row.allowed, None if state is None else state.seen]
    if any(each is not None and (each.shape != (vocab_size,) or not each.is_contiguous()) for each in tensors):
        raise ValueError(f"the penalties or the allowed tokens do not match the vocabulary of {vocab_size} tokens")
    allowed = 0 if row.allowed is None else row.allowed.data_ptr()
    params = row.params
    strengths = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
    if (bias := params.logit_bias) is None:
        return Edits(*penalties, allowed, 0, 0, 0, *strengths)
    if max(bias.token_ids) >= vocab_size:
        raise ValueError(f"the logit bias contains a token id beyond the vocabulary of {vocab_size} tokens")
    (biased, size), (biases, _) = bias.token_ids.buffer_info(), bias.values.buffer_info()
    return Edits(*penalties, allowed, biased, biases, size, *strengths)
