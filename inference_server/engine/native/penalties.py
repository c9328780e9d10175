"""Changes logits before sampling: a request's bias, then repetition, frequency and presence penalty.

The repetition penalty is that of CTRL (Keskar et al. 2019), and applies to tokens of prompt and reply. Frequency and
presence penalty follow OpenAI's API reference, and apply to tokens of the reply. BiasedRows and PenalisedRows do not
wait for the device.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inference_server.generation import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LARGEST_LOGIT = 1e30


class ListedTokens:
    """The distinct tokens of one sequence, in the layout that the sampling kernel reads.

    Attributes:
        ids: Token ids, int32.
        counts: Occurrences of each token in the reply, float32.
    """

    def __init__(self, prompt_ids: Items[int], reply_ids: Items[int] = ()) -> None:
        """List the tokens of a prompt and the reply so far."""
        counts = dict.fromkeys(prompt_ids, 0) | Counter(reply_ids)
        self.ids, self.counts = array("i", counts), array("f", counts.values())
        self._places = {token_id: place for place, token_id in enumerate(counts)}

    def add(self, token_id: int) -> None:
        """Count one token of the reply."""
        place = self._places.setdefault(token_id, len(self.ids))
        if place == len(self.ids):
            self.ids.append(token_id)
            self.counts.append(0)
        self.counts[place] += 1


class PenaltyState:
    """Tokens of one sequence, for its penalties.

    Attributes:
        seen: bool of shape (vocab_size,), True for tokens of prompt and reply.
        counts: float32 of shape (vocab_size,), occurrences in the reply.
    """

    def __init__(
        self, prompt_ids: Items[int], vocab_size: int, device: torch.device, reply_ids: Items[int] = ()
    ) -> None:
        """Create the state of a prompt and the reply so far."""
        counts = torch.bincount(torch.tensor(list(reply_ids), dtype=torch.int64), minlength=vocab_size)
        seen = counts > 0
        seen[torch.tensor(list(prompt_ids))] = True
        self.seen = seen.to(device)
        self.counts = counts.float().to(device)
        self._listed: ListedTokens | None = None
        # The same memory as numpy arrays; None on a GPU. Changing one element of an array takes a tenth of the time
        # that a tensor needs.
        self._views: tuple[NDArray[np.bool_], NDArray[np.float32]] | None = None
        if device.type == "cpu":
            self._listed = ListedTokens(prompt_ids, reply_ids)
            self._views = self.seen.numpy(), self.counts.numpy()

    def add(self, token_id: int) -> None:
        """Count one token of the reply."""
        if self._listed is not None:
            self._listed.add(token_id)
        seen, counts = (self.seen, self.counts) if self._views is None else self._views
        seen[token_id] = True
        counts[token_id] += 1

    def share(self, seen: Tensor, counts: Tensor) -> None:
        """Replace the tensors with equal ones that the caller owns and may change."""
        self.seen, self.counts = seen, counts
        self._listed = self._views = None

    def listed(self) -> ListedTokens:
        """Return the tokens in the layout of the sampling kernel. Waits for the device if it is a GPU."""
        if self._listed is not None:
            return self._listed
        listed = ListedTokens(self.seen.nonzero().flatten().tolist())
        listed.counts = array("f", self.counts[self.seen].tolist())
        return listed


class BiasedRows:
    """The biases of a batch, whose rows stay the same from step to step."""

    def __init__(self, params: Items[SamplingParams], upload: Callable[[Tensor], Tensor]) -> None:
        """Join the biases of all rows that have one.

        Args:
            params: Parameters of all rows, of which at least one has a bias.
            upload: Moves a tensor from the CPU to the device of the logits.
        """
        biases = [(row, param.logit_bias) for row, param in enumerate(params) if param.logit_bias is not None]
        places = [(row, token_id) for row, bias in biases for token_id in bias.token_ids]
        self._rows, self._token_ids = upload(torch.tensor(places).T.contiguous())
        self._values = upload(torch.tensor([value for _, bias in biases for value in bias.values]))

    def apply(self, logits: Tensor) -> Tensor:
        """Return biased logits of shape (num_rows, vocab_size) in new memory."""
        places = self._rows, self._token_ids
        return logits.index_put(places, logits[places] + self._values)


def bias_rows(logits: Tensor, params: Items[SamplingParams]) -> bool:
    """Add the rows' biases to `logits` in place. Returns True if any row has a bias."""
    biased = [(row, param.logit_bias) for row, param in enumerate(params) if param.logit_bias is not None]
    for row, bias in biased:
        places = torch.frombuffer(bias.token_ids, dtype=torch.int32).long().to(logits.device)
        logits[row, places] += torch.frombuffer(bias.values, dtype=torch.float32).to(logits.device)
    return bool(biased)


class PenalisedRows:
    """The penalty states of several sequences in one batch. They also count tokens that the host has not read yet.

    While this object exists, the sequences' own states are views of its tensors, so that both are always equal.
    """

    def __init__(self, states: Items[PenaltyState], strengths: Tensor) -> None:
        """Join the states. `strengths`: from `penalty_strengths`, on the device of the states."""
        self._strengths = strengths
        self._seen = torch.stack([state.seen for state in states])
        self._counts = torch.stack([state.counts for state in states])
        for state, seen, counts in zip(states, self._seen, self._counts, strict=True):
            state.share(seen, counts)

    def apply(self, logits: Tensor) -> Tensor:
        """Return penalised logits of shape (num_rows, vocab_size) in new memory."""
        return penalise(logits, self._seen, self._counts, self._strengths)

    def add(self, token_ids: Tensor) -> None:
        """Count one token of each row: int64 of shape (num_rows,). Negative numbers are markers and not counted."""
        places = token_ids.clamp(min=0)[:, None]
        is_token = token_ids[:, None] >= 0
        self._counts.scatter_add_(1, places, is_token.float())
        self._seen.scatter_(1, places, is_token | self._seen.gather(1, places))


def penalty_strengths(params: Items[SamplingParams]) -> Tensor:
    """Return repetition, frequency and presence penalties on the CPU: float32 of shape (3, num_rows, 1)."""
    columns = [[param.repetition_penalty, param.frequency_penalty, param.presence_penalty] for param in params]
    return torch.tensor(columns, dtype=torch.float32).T[..., None].contiguous()


def penalise_rows(logits: Tensor, states: Mapping[int, PenaltyState], params: Items[SamplingParams]) -> None:
    """Penalise rows of logits in place.

    Args:
        logits: float32 of shape (num_rows, vocab_size).
        states: Tokens of the penalised rows, by index of the row.
        params: Parameters of all rows.
    """
    rows = list(states)
    strengths = penalty_strengths([params[row] for row in rows]).to(logits.device)
    counts = torch.stack([state.counts for state in states.values()])
    seen = torch.stack([state.seen for state in states.values()])
    logits[rows] = penalise(logits[rows], seen, counts, strengths)


def penalise(logits: Tensor, seen: Tensor, counts: Tensor, strengths: Tensor) -> Tensor:
    """Return penalised logits in new memory.

    Args:
        logits: float32 of shape (num_rows, vocab_size).
        seen: bool of the same shape, True for tokens of prompt and reply.
        counts: float32 of the same shape, occurrences in the reply.
        strengths: From `penalty_strengths`, on the device of the logits.
    """
    repetition, frequency, presence = strengths
    logits = torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
    logits = logits - counts * frequency
    logits -= (counts > 0) * presence
    # A tiny repetition penalty causes infinite logits, for which softmax would return NaN. The limit is low enough for
    # a later division by the temperature.
    return logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
