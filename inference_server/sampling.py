"""Logits to token ids, one row for each sequence: penalties, temperature, top_k, top_p, a draw, log probabilities.

Every row is treated by its own parameters alone, so that a sequence's tokens do not depend on who else is in the batch.
The random number for a token comes from (seed, position); there is no generator with a state. Knows nothing of text.
"""

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server.sequence import Candidate, SamplingParams, TokenLogprob

# How many of the likeliest tokens are sorted before the whole vocabulary is: nearly always they hold top_p's mass.
_SHORTLIST = 256
_LARGEST_LOGIT = 1e30
_MASK64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class PenaltyState:
    """Which tokens a sequence has seen. `seen` (vocab_size,) bool, `counts` (vocab_size,) float32: in the reply alone."""

    def __init__(self, prompt_ids: Items[int], vocab_size: int, device: torch.device) -> None:
        self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.seen[torch.tensor(list(prompt_ids), device=device)] = True
        self.counts = torch.zeros(vocab_size, dtype=torch.float32, device=device)

    def add(self, token_id: int) -> None:
        self.seen[token_id] = True
        self.counts[token_id] += 1


@dataclass(slots=True)
class Row:
    """What sampling needs to know of one sequence; `position` is the index its next token will have in the sequence."""

    params: SamplingParams
    position: int
    penalties: PenaltyState | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    token_id: int
    logprob: TokenLogprob | None = None


class NotFinite(Exception):
    """Some row's logits hold NaN, or nothing but -inf. `rows` says which."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"logits of rows {rows} are not finite")
        self.rows = rows


def sample(logits: Tensor, rows: Items[Row]) -> list[Sample]:
    """Choose one token for each row. logits (num_rows, vocab_size) float32.

    Raises NotFinite before anything is changed; after that logits are changed in place.
    """
    largest, likeliest = logits.max(dim=-1)  # NaN counts as largest
    if bad := [index for index, value in enumerate(largest.tolist()) if not math.isfinite(value)]:
        raise NotFinite(bad)
    logprobs = _logprobs_of_model(logits, rows)
    if _apply_penalties(logits, rows):
        likeliest = logits.argmax(dim=-1)
    chosen = _choose(logits, likeliest.tolist(), rows)
    return [
        Sample(token_id, _report(logprobs[index], token_id, row.params) if row.params.logprobs is not None else None)
        for index, (token_id, row) in enumerate(zip(chosen, rows, strict=True))
    ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, position) alone.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), jumped to `position`; the seed
    is mixed first, so that neighbouring seeds have nothing in common.
    """
    return (_mix64(_mix64(seed) + (position + 1) * _GOLDEN_GAMMA) >> 11) * 2.0**-53


def _mix64(value: int) -> int:
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _apply_penalties(logits: Tensor, rows: Items[Row]) -> bool:
    """Repetition penalty as in CTRL (Keskar et al. 2019), over prompt and reply; the other two as OpenAI has them.

    Changes the rows that have penalties and returns whether there are any.
    """
    penalised = [index for index, row in enumerate(rows) if row.penalties is not None]
    if not penalised:
        return False
    states = [state for row in rows if (state := row.penalties) is not None]
    params = [rows[index].params for index in penalised]
    subset = logits[penalised]
    counts = torch.stack([state.counts for state in states])
    seen = torch.stack([state.seen for state in states])
    repetition = _column([param.repetition_penalty for param in params], logits)
    subset = torch.where(seen, torch.where(subset > 0, subset / repetition, subset * repetition), subset)
    subset -= counts * _column([param.frequency_penalty for param in params], logits)
    subset -= (counts > 0) * _column([param.presence_penalty for param in params], logits)
    # A tiny repetition penalty makes infinities, of which softmax makes NaN; the limit leaves room for a temperature.
    logits[penalised] = subset.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    return True


def _choose(logits: Tensor, likeliest: list[int], rows: Items[Row]) -> list[int]:
    chosen = list(likeliest)
    random = [index for index, row in enumerate(rows) if not row.params.is_greedy]
    narrowed = [index for index in random if _is_narrowed(rows[index].params)]
    whole = [index for index in random if not _is_narrowed(rows[index].params)]
    for indices, draw in ((whole, _draw_from_all), (narrowed, _draw_from_likeliest)):
        if indices:
            scaled = logits[indices] / _column([rows[index].params.temperature for index in indices], logits)
            for index, token_id in zip(indices, draw(scaled, [rows[index] for index in indices]), strict=True):
                chosen[index] = token_id
    return chosen


def _is_narrowed(params: SamplingParams) -> bool:
    return params.top_k is not None or params.top_p < 1.0


def _draw_from_all(scaled: Tensor, rows: Items[Row]) -> list[int]:
    probabilities = torch.softmax(scaled, dim=-1, dtype=torch.float64)
    return _pick(probabilities, rows)


def _draw_from_likeliest(scaled: Tensor, rows: Items[Row]) -> list[int]:
    """Draw from a sorted shortlist; a row whose top_k or top_p reaches beyond it is drawn from its whole vocabulary."""
    size = min(_SHORTLIST, scaled.shape[-1])
    total = torch.logsumexp(scaled, dim=-1, keepdim=True)
    values, ids = torch.topk(scaled, size)
    shares = torch.exp((values - total).double())  # (n, size), descending
    covered = shares.sum(dim=-1).tolist()
    chosen: list[int] = []
    for index, row in enumerate(rows):
        top_k = row.params.top_k
        if (top_k is not None and top_k <= size) or (top_k is None and covered[index] >= row.params.top_p):
            row_shares, row_ids = shares[index : index + 1], ids[index]
        else:
            row_values, row_ids = torch.sort(scaled[index], descending=True, stable=True)
            row_shares = torch.softmax(row_values.double(), dim=-1)[None, :]
        place = _pick(_narrow(row_shares, row.params), [row])[0]
        chosen.append(int(row_ids[place]))
    return chosen


def _narrow(shares: Tensor, params: SamplingParams) -> Tensor:
    """Zero what top_k, then top_p leave out. shares (1, n) descending; top_p counts shares of what top_k left."""
    if params.top_k is not None:
        shares = shares[:, : params.top_k]
        shares = shares / shares.sum(dim=-1, keepdim=True)
    before = shares.cumsum(dim=-1) - shares
    return torch.where(before < params.top_p, shares, 0.0)


def _pick(weights: Tensor, rows: Items[Row]) -> list[int]:
    """Inverse transform sampling. weights (n, k) float64, not necessarily normalised; returns n column indices."""
    cumulative = weights.cumsum(dim=-1)
    draws = torch.tensor([uniform(row.params.seed, row.position) for row in rows], dtype=weights.dtype)
    thresholds = draws.to(weights.device)[:, None] * cumulative[:, -1:]
    places = torch.searchsorted(cumulative, thresholds, right=True)
    # A threshold at the very end, by rounding, must not land on a token of probability 0.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    picked: list[int] = torch.minimum(places, last).squeeze(-1).tolist()
    return picked


def _logprobs_of_model(logits: Tensor, rows: Items[Row]) -> dict[int, Tensor]:
    """Log probabilities (vocab_size,) of the rows that ask for them, before anything is applied."""
    return {
        index: torch.log_softmax(logits[index], dim=-1)
        for index, row in enumerate(rows)
        if row.params.logprobs is not None
    }


def _report(logprobs: Tensor, token_id: int, params: SamplingParams) -> TokenLogprob:
    top: tuple[Candidate, ...] = ()
    if params.logprobs:
        values, ids = torch.topk(logprobs, min(params.logprobs, logprobs.shape[-1]))
        top = tuple(Candidate(*pair) for pair in zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(Candidate(token_id, float(logprobs[token_id])), top)


def _column(values: Items[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
