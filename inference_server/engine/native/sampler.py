"""Samples a token id from each row of logits: penalties, temperature, top_k, top_p, and log probabilities.

Each row uses its own parameters only, so that a sequence's tokens do not depend on the other requests in the batch. Sampling
is Gumbel-max: the token with the largest sum of logit / temperature and noise is sampled. The noise depends on seed,
position and token id (gumbel.py). top_k and top_p only restrict the candidates. Works on token ids, not on text.
"""

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server.engine.native import gumbel as noise
from inference_server.engine.sequence import Penalties
from inference_server.generation import Candidate, SamplingParams, TokenLogprob

# Number of likeliest tokens that are sorted first. The whole vocabulary is sorted only if top_k or top_p needs more.
_SHORTLIST = 256
# Tokens per piece when searching for the largest logit: several times faster than torch's own argmax.
_PIECE = 256
# Tokens per piece when searching for the shortlist of likeliest tokens.
_SMALL_PIECE = 32
# Number of pieces that are searched first. The sampled token is almost always in one of them.
NUM_PIECES = 8
# Logits that are processed together on a CPU, so that intermediate results stay in the core's cache.
_CACHED_LOGITS = 65_536
_LARGEST_LOGIT = 1e30
_FORBIDDEN = 1e38  # subtracted from the logit of a token that must not be chosen


class PenaltyState:
    """Tokens of one sequence, for its penalties.

    Attributes:
        seen: bool of shape (vocab_size,), True for tokens of prompt and reply.
        counts: float32 of shape (vocab_size,), occurrences in the reply.
    """

    def __init__(self, prompt_ids: Items[int], vocab_size: int, device: torch.device) -> None:
        """Create the state of a prompt with an empty reply."""
        self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.seen[torch.tensor(list(prompt_ids), device=device)] = True
        self.counts = torch.zeros(vocab_size, dtype=torch.float32, device=device)

    def add(self, token_id: int) -> None:
        """Count one token of the reply."""
        self.seen[token_id] = True
        self.counts[token_id] += 1


@dataclass(slots=True)
class Row:
    """Sampling state of one sequence. `position`: index of the token to sample within prompt and reply."""

    params: SamplingParams
    position: int
    penalties: Penalties | None = None  # a PenaltyState
    allowed: Tensor | None = None  # uint8 of shape (vocab_size,) on the CPU: 0 excludes a token


@dataclass(frozen=True, slots=True)
class Sample:
    """A sampled token, with log probabilities if the request includes them."""

    token_id: int
    logprob: TokenLogprob | None = None


class NotFinite(Exception):
    """Rows of logits contain NaN or only -inf. `rows`: their indices."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"logits of rows {rows} are not finite")
        self.rows = rows


def sample(logits: Tensor, rows: Items[Row]) -> list[Sample]:
    """Sample one token for each row.

    Args:
        logits: float32 of shape (num_rows, vocab_size). Changed in place.
        rows: Sampling state of each row.

    Raises:
        NotFinite: Rows cannot be sampled. The logits are then unchanged.
    """
    likeliest = _argmax(logits)  # NaN counts as largest
    largest = logits.gather(-1, likeliest[:, None]).squeeze(-1)
    if bad := [index for index, value in enumerate(largest.tolist()) if not math.isfinite(value)]:
        raise NotFinite(bad)
    logprobs = _logprobs_of_model(logits, rows)
    if _apply_penalties(logits, rows) | _forbid(logits, rows):
        likeliest = _argmax(logits)
    chosen = _choose(logits, likeliest.tolist(), rows)
    return [
        Sample(token_id, _report(logprobs[index], token_id, row.params) if row.params.logprobs is not None else None)
        for index, (token_id, row) in enumerate(zip(chosen, rows, strict=True))
    ]


def _apply_penalties(logits: Tensor, rows: Items[Row]) -> bool:
    """Apply the penalties of all rows in place. Returns True if there are any.

    The repetition penalty is that of CTRL (Keskar et al. 2019) over prompt and reply. Frequency and presence penalty follow
    OpenAI's API reference, over the reply.
    """
    penalised = [index for index, row in enumerate(rows) if row.penalties is not None]
    if not penalised:
        return False
    states = [state for row in rows if isinstance(state := row.penalties, PenaltyState)]
    params = [rows[index].params for index in penalised]
    subset = logits[penalised]
    counts = torch.stack([state.counts for state in states])
    seen = torch.stack([state.seen for state in states])
    repetition = _column([param.repetition_penalty for param in params], logits)
    subset = torch.where(seen, torch.where(subset > 0, subset / repetition, subset * repetition), subset)
    subset -= counts * _column([param.frequency_penalty for param in params], logits)
    subset -= (counts > 0) * _column([param.presence_penalty for param in params], logits)
    # A tiny repetition penalty causes infinities, and softmax would return NaN. The limit allows a division by temperature.
    logits[penalised] = subset.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    return True


def _forbid(logits: Tensor, rows: Items[Row]) -> bool:
    """Exclude the tokens that a grammar does not allow, in place. Returns True if any row has a grammar."""
    has_any = False
    for index, row in enumerate(rows):
        if row.allowed is not None:
            has_any = True
            # The result is far below every logit. masked_fill with -inf takes ten times as long on a CPU.
            out = logits[index]
            torch.add(out, row.allowed.to(logits.device).float() - 1, alpha=_FORBIDDEN, out=out)
    return has_any


def _choose(logits: Tensor, likeliest: list[int], rows: Items[Row]) -> list[int]:
    chosen = list(likeliest)
    random = [index for index, row in enumerate(rows) if not row.params.is_greedy]
    narrowed = [index for index in random if _is_narrowed(rows[index].params)]
    whole = [index for index in random if not _is_narrowed(rows[index].params)]
    at_once = max(1, _CACHED_LOGITS // logits.shape[-1]) if logits.device.type == "cpu" else len(rows)
    parts = [(_draw_from_all, whole[first : first + at_once]) for first in range(0, len(whole), at_once)]
    parts.append((_draw_from_likeliest, narrowed))
    for draw, indices in parts:
        if indices:
            drawn_from = [rows[index] for index in indices]
            temperatures = _column([row.params.temperature for row in drawn_from], logits)
            for index, token_id in zip(indices, draw(_take(logits, indices), temperatures, drawn_from), strict=True):
                chosen[index] = token_id
    return chosen


def _is_narrowed(params: SamplingParams) -> bool:
    return params.top_k is not None or params.top_p < 1.0


def _draw_from_all(logits: Tensor, temperatures: Tensor, rows: Items[Row]) -> list[int]:
    """Sample from all tokens: the largest logit + temperature * noise wins.

    This avoids the additional pass over the logits that dividing them by the temperature would take.

    Gumbel noise needs two logarithms. Its upper bound -log(u) needs one, and selects the pieces that can contain the winner.
    A row whose winner is below the bound of another piece is computed in full.
    """
    uniforms = noise.uniform_of_all(_keys(rows), logits.shape[-1], logits.device)
    size = math.gcd(logits.shape[-1], _PIECE)
    if size < _PIECE // 8 or logits.shape[-1] // size <= NUM_PIECES:
        token_ids: list[int] = _argmax(logits + temperatures * noise.gumbel(uniforms)).tolist()
        return token_ids
    limits = torch.addcmul(logits, uniforms.log(), -temperatures)
    limits, pieces = limits.view(len(rows), -1, size).amax(dim=-1).topk(NUM_PIECES + 1)
    ids = (pieces[:, :-1, None] * size + torch.arange(size, device=logits.device)).flatten(1)
    best, places = (logits.gather(-1, ids) + temperatures * noise.gumbel(uniforms.gather(-1, ids))).max(dim=-1)
    winners = ids.gather(-1, places[:, None]).squeeze(-1)
    token_ids = torch.where(best > limits[:, -1], winners, -1).tolist()
    for index in [index for index, token_id in enumerate(token_ids) if token_id < 0]:
        token_ids[index] = int((logits[index] + temperatures[index] * noise.gumbel(uniforms[index])).argmax())
    return token_ids


def _draw_from_likeliest(logits: Tensor, temperatures: Tensor, rows: Items[Row]) -> list[int]:
    """Sample from a sorted shortlist, or from the sorted vocabulary if top_k or top_p needs more tokens."""
    scaled = logits / temperatures
    values, ids = _topk(scaled, min(_SHORTLIST, scaled.shape[-1]))
    token_ids, is_settled = _pick_winners(values, ids, scaled, rows)
    chosen: list[int] = torch.where(is_settled.squeeze(-1), token_ids, -1).tolist()
    if beyond := [index for index, token_id in enumerate(chosen) if token_id < 0]:
        values, ids = torch.sort(_take(scaled, beyond), descending=True, stable=True)
        token_ids, _ = _pick_winners(values, ids, values, [rows[index] for index in beyond])
        for index, token_id in zip(beyond, token_ids.tolist(), strict=True):
            chosen[index] = token_id
    return chosen


def _pick_winners(values: Tensor, ids: Tensor, scaled: Tensor, rows: Items[Row]) -> tuple[Tensor, Tensor]:
    """Return the winners among the candidates of top_k and top_p, and whether the list contains all candidates.

    top_k applies first. top_p then refers to the probabilities of the remaining tokens.

    Args:
        values: Logits / temperature in descending order, shape (n, size).
        ids: Their token ids, shape (n, size).
        scaled: Logits / temperature of the whole vocabulary, shape (n, vocab_size).
        rows: Sampling state of each row.
    """
    size = values.shape[-1]
    top_k = torch.tensor([min(row.params.top_k or 2**62, 2**62) for row in rows], device=values.device)[:, None]
    # Without top_p no token is excluded, even if the sum of probabilities is rounded up to 1 early.
    top_p = torch.tensor([row.params.top_p if row.params.top_p < 1.0 else 2.0 for row in rows], dtype=torch.float64)
    top_p = top_p.to(values.device)[:, None]
    is_kept = torch.arange(size, device=values.device) < top_k
    weights = (values - values[:, :1]).double().exp() * is_kept
    reached = weights.cumsum(dim=-1)
    total = reached[:, -1:]
    is_settled = top_k <= size
    if any(row.params.top_k is None for row in rows):
        everything = (scaled.logsumexp(dim=-1, keepdim=True) - values[:, :1]).double().exp()
        total = torch.where(top_k < 2**62, total, everything)
        is_settled = is_settled | ((top_k >= 2**62) & (reached[:, -1:] >= top_p * total))
    is_kept &= reached - weights < top_p * total
    scores = values + noise.gumbel(noise.uniform(_keys(rows), ids))
    places = torch.where(is_kept, scores, -torch.inf).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, places).squeeze(-1), is_settled


def _keys(rows: Items[Row]) -> list[int]:
    return [noise.key(row.params.seed, row.position) for row in rows]


def _take(logits: Tensor, indices: list[int]) -> Tensor:
    """Return rows of logits. A single row is not copied."""
    return logits[indices[0]][None] if len(indices) == 1 else logits[indices]


def _topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the same as values.topk(k), several times faster. Shape of `values`: (n, vocab_size).

    The k largest values are in the k pieces with the largest maxima.
    """
    size = math.gcd(values.shape[-1], _SMALL_PIECE)
    if size < _SMALL_PIECE or values.shape[-1] // size <= 2 * k:
        return values.topk(k)
    pieces = values.view(len(values), -1, size)
    best = pieces.amax(dim=-1).topk(k, sorted=False).indices[..., None]
    ids = (best * size + torch.arange(size, device=values.device)).flatten(1)
    largest, places = values.gather(-1, ids).topk(k)
    return largest, ids.gather(-1, places)


def _argmax(values: Tensor) -> Tensor:
    """Return values.argmax(dim=-1) of shape (n, vocab_size): the first of equal values; NaN counts as largest."""
    size = math.gcd(values.shape[-1], _PIECE)
    if size < _PIECE // 8:
        return values.argmax(dim=-1)
    pieces = values.view(len(values), -1, size)
    best = pieces.amax(dim=-1).argmax(dim=-1)
    return best * size + pieces[torch.arange(len(values), device=values.device), best].argmax(dim=-1)


def _logprobs_of_model(logits: Tensor, rows: Items[Row]) -> dict[int, Tensor]:
    """Return log probabilities of shape (vocab_size,) for the rows that need them, from the unchanged logits."""
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
