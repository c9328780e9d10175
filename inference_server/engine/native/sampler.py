"""Samples a token id from each row of logits: bias, penalties, temperature, min_p, top_k, top_p, and log probabilities.

Each row uses its own parameters only, so that a sequence's tokens do not depend on the other requests in the batch. Sampling
is Gumbel-max: the token with the largest sum of logit / temperature and noise is sampled. The noise depends on seed,
position and token id (gumbel.py). min_p, top_k and top_p only restrict the candidates. min_p and top_k apply first, and
their order does not matter. top_p then refers to the probabilities of the remaining tokens. This module works on token
ids, not on text.
"""

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from inference_server.engine.native import gumbel as noise
from inference_server.engine.native.penalties import PenaltyState, bias_rows, penalise_rows
from inference_server.engine.native.row_edits import edits_of, has_penalties_alone
from inference_server.engine.native.shortlist import (
    draw_from_likeliest,
    is_narrowed,
    logit_depth,
    logit_depths,
    without_unlikely,
)
from inference_server.engine.sequence import Penalties
from inference_server.generation import PENALTIES, Candidate, SamplingParams, TokenLogprob
from inference_server.kernels.jit.kernel import Kernel
from inference_server.kernels.sampling.record import UNDECIDED
from inference_server.kernels.sampling_calls import (
    GREEDY,
    NO_EDITS,
    Draw,
    row_record,
    sample_rows,
    sampling_kernel,
)

# Number of tokens per piece in the search for the largest logit. Searching in pieces is several times faster than
# torch's own argmax.
_PIECE = 256
# Number of pieces that are searched first. The sampled token is almost always in one of them.
NUM_PIECES = 8
# Number of logits that are processed together on a CPU, so that intermediate results stay in the core's cache.
_CACHED_LOGITS = 65_536
_FORBIDDEN = 1e38  # subtracted from the logit of a token that must not be chosen
# The parameters that the compiled kernel applies, or that do not concern it.
_COMPILED = frozenset(
    ("seed", "temperature", "top_p", "top_k", "min_p", "logit_bias", "logprobs", "ignore_eos", *PENALTIES)
)
# The other parameters with their defaults. torch samples the rows that set one.
UNCOMPILED = {field.name: field.default for field in fields(SamplingParams) if field.name not in _COMPILED}


@dataclass(slots=True)
class Row:
    """Sampling state of one sequence. `position`: index of the token to sample within prompt and reply."""

    params: SamplingParams
    position: int
    penalties: Penalties | None = None  # a PenaltyState, which a Sequence holds under this protocol; None: none
    allowed: Tensor | None = None  # uint8 of shape (vocab_size,) on the CPU: 0 excludes a token


@dataclass(frozen=True, slots=True)
class Sample:
    """A sampled token, with log probabilities if the request asks for them."""

    token_id: int
    logprob: TokenLogprob | None = None


class NotFinite(Exception):
    """The largest logit of some rows is not finite: they contain NaN or +inf, or only -inf. `rows`: their indices."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"logits of rows {rows} are not finite")
        self.rows = rows


def sample(logits: Tensor, rows: Items[Row]) -> list[Sample]:
    """Sample one token for each row, with the compiled kernel if there is one for these logits.

    Args:
        logits: float32 of shape (num_rows, vocab_size). May be changed in place.
        rows: Sampling state of each row.

    Raises:
        NotFinite: Rows cannot be sampled. The logits are then unchanged.
    """
    kernel = sampling_kernel(logits)
    return _sample_with_torch(logits, rows) if kernel is None else _sample_with_kernel(kernel, logits, rows)


def _sample_with_kernel(kernel: Kernel, logits: Tensor, rows: Items[Row]) -> list[Sample]:
    hashes, vocab_size = noise.token_hashes(logits.shape[-1], logits.device), logits.shape[-1]
    row_bytes = logits.stride(0) * 4
    places = [logits.data_ptr() + index * row_bytes for index in range(len(rows))]
    draws = _draws(rows)
    edits, kept = edits_of(rows, vocab_size)
    tops = {
        index: torch.empty(max(1, min(row.params.logprobs, vocab_size)), 2, dtype=torch.int32)
        for index, row in enumerate(rows)
        if row.params.logprobs is not None
    }
    # If a row is not finite, no logits may have changed. Penalties can be undone. Rows with other edits are therefore
    # only examined at first, and so are edited rows that report log probabilities of their unchanged logits.
    later = {index for index in edits if index in tops or not has_penalties_alone(rows[index])}
    drawn = [GREEDY if index in later else draw for index, draw in enumerate(draws)]
    first = [NO_EDITS if index in later else edits.get(index, NO_EDITS) for index in range(len(rows))]
    records = list(map(row_record, places, first, drawn))
    for index, top in tops.items():
        num_top = rows[index].params.logprobs or 0
        records[index] = row_record(places[index], NO_EDITS, drawn[index], top.data_ptr(), min(num_top, vocab_size))
    results = sample_rows(kernel, records, vocab_size, hashes)
    if bad := [index for index, value in enumerate(results.largest) if not math.isfinite(value)]:
        for index in edits.keys() - later:
            kept[index].restore(logits[index])
        raise NotFinite(bad)
    unchanged = {index: logits[index].clone() if index in later else logits[index] for index in tops}
    tokens = results.tokens
    if later:
        records = [row_record(places[index], edits[index], draws[index]) for index in later]
        for index, token_id in zip(later, sample_rows(kernel, records, vocab_size, hashes).tokens, strict=True):
            tokens[index] = token_id
    _choose_undecided(logits, tokens, rows)
    samples = list(map(Sample, tokens))
    for index, top in tops.items():
        total = results.largest[index] + math.log(results.totals[index])
        report = _report_of_kernel(unchanged[index], total, tokens[index], top, rows[index].params)
        samples[index] = Sample(tokens[index], report)
    return samples


def _draws(rows: Items[Row]) -> list[Draw]:
    params = [row.params for row in rows]
    if all(param.is_greedy for param in params):
        return [GREEDY] * len(rows)
    keys = noise.Keys([param.seed for param in params], [row.position for row in rows]).take_integers()
    return [
        GREEDY if param.is_greedy else Draw(param.temperature, key, param.top_k or 0, param.top_p, logit_depth(param))
        for param, key in zip(params, keys, strict=True)
    ]


def _choose_undecided(logits: Tensor, tokens: list[int], rows: Items[Row]) -> None:
    """Use torch to sample the rows for which the kernel returned no token, and those with UNCOMPILED parameters."""
    if UNCOMPILED:
        for index, row in enumerate(rows):
            if not row.params.is_greedy and any(getattr(row.params, name) != UNCOMPILED[name] for name in UNCOMPILED):
                tokens[index] = UNDECIDED
    if undecided := [index for index, token_id in enumerate(tokens) if token_id < 0]:
        chosen = _choose(_take(logits, undecided), [0] * len(undecided), [rows[index] for index in undecided])
        for index, token_id in zip(undecided, chosen, strict=True):
            tokens[index] = token_id


def _report_of_kernel(logits: Tensor, total: float, token_id: int, top: Tensor, params: SamplingParams) -> TokenLogprob:
    """Return the log probabilities of a row. `total`: logarithm of the sum of exp(logit)."""
    candidates: tuple[Candidate, ...] = ()
    if params.logprobs:
        ids = top[:, 1].tolist()
        if min(ids) < 0:  # fewer tokens have a finite logit than the request asks for
            return _report(torch.log_softmax(logits, dim=-1), token_id, params)
        values = top.view(torch.float32)[:, 0].tolist()
        candidates = tuple(Candidate(other, value - total) for other, value in zip(ids, values, strict=True))
    return TokenLogprob(Candidate(token_id, float(logits[token_id]) - total), candidates)


def _sample_with_torch(logits: Tensor, rows: Items[Row]) -> list[Sample]:
    likeliest = _argmax(logits)  # torch counts NaN as the largest value
    largest = logits.gather(-1, likeliest[:, None]).squeeze(-1)
    if bad := [index for index, value in enumerate(largest.tolist()) if not math.isfinite(value)]:
        raise NotFinite(bad)
    logprobs = _logprobs_of_model(logits, rows)
    states = {index: state for index, row in enumerate(rows) if isinstance(state := row.penalties, PenaltyState)}
    params = [row.params for row in rows]
    has_edits = bias_rows(logits, params) or bool(states)
    if states:
        penalise_rows(logits, states, params)
    if _forbid(logits, rows) or has_edits:
        likeliest = _argmax(logits)
    chosen = _choose(logits, likeliest.tolist(), rows)
    return [
        Sample(token_id, _report(logprobs[index], token_id, row.params) if row.params.logprobs is not None else None)
        for index, (token_id, row) in enumerate(zip(chosen, rows, strict=True))
    ]


def _forbid(logits: Tensor, rows: Items[Row]) -> bool:
    """Exclude the tokens that a grammar does not allow, in place. Returns True if any row has a grammar."""
    has_any = False
    for index, row in enumerate(rows):
        if row.allowed is not None:
            has_any = True
            # Subtracting moves the token far below every other logit. masked_fill with -inf takes ten times as long on
            # a CPU.
            out = logits[index]
            torch.add(out, row.allowed.to(logits.device).float() - 1, alpha=_FORBIDDEN, out=out)
    return has_any


def _choose(logits: Tensor, likeliest: list[int], rows: Items[Row]) -> list[int]:
    chosen = list(likeliest)
    random = [index for index, row in enumerate(rows) if not row.params.is_greedy]
    narrowed = [index for index in random if is_narrowed(rows[index].params)]
    whole = [index for index in random if not is_narrowed(rows[index].params)]
    at_once = max(1, _CACHED_LOGITS // logits.shape[-1]) if logits.device.type == "cpu" else len(rows)
    parts = [whole[first : first + at_once] for first in range(0, len(whole), at_once)]
    for indices in [*parts, narrowed]:
        if indices:
            params = [rows[index].params for index in indices]
            temperatures = _column([param.temperature for param in params], logits)
            draw = draw_from_likeliest if indices is narrowed else _draw_from_all
            candidates = _take(logits, indices)
            if (depths := logit_depths(params)) is not None:
                candidates = without_unlikely(candidates, depths.to(logits.device))
            token_ids = draw(candidates, temperatures, params, _keys([rows[index] for index in indices]))
            for index, token_id in zip(indices, token_ids, strict=True):
                chosen[index] = token_id
    return chosen


def _draw_from_all(logits: Tensor, temperatures: Tensor, params: Items[SamplingParams], keys: Items[int]) -> list[int]:
    """Sample from all tokens: the token with the largest logit + temperature * noise.

    Multiplying the noise avoids another pass over the logits, to divide them by the temperature.

    Gumbel noise needs two logarithms, but its upper bound -log(u) only one. The bounds select the pieces with the
    largest possible sums, for which the noise is computed. If another piece's bound exceeds the best sum of a row, the
    whole row is computed.
    """
    uniforms = noise.uniform_of_all(keys, logits.shape[-1], logits.device)
    size = math.gcd(logits.shape[-1], _PIECE)
    if size < _PIECE // 8 or logits.shape[-1] // size <= NUM_PIECES:
        token_ids: list[int] = _argmax(logits + temperatures * noise.gumbel(uniforms)).tolist()
        return token_ids
    limits = torch.addcmul(logits, uniforms.log(), -temperatures)
    limits, pieces = limits.view(len(keys), -1, size).amax(dim=-1).topk(NUM_PIECES + 1)
    ids = (pieces[:, :-1, None] * size + torch.arange(size, device=logits.device)).flatten(1)
    best, places = (logits.gather(-1, ids) + temperatures * noise.gumbel(uniforms.gather(-1, ids))).max(dim=-1)
    winners = ids.gather(-1, places[:, None]).squeeze(-1)
    token_ids = torch.where(best > limits[:, -1], winners, -1).tolist()
    for index in [index for index, token_id in enumerate(token_ids) if token_id < 0]:
        token_ids[index] = int((logits[index] + temperatures[index] * noise.gumbel(uniforms[index])).argmax())
    return token_ids


def _keys(rows: Items[Row]) -> list[int]:
    return [noise.key(row.params.seed, row.position) for row in rows]


def _take(logits: Tensor, indices: list[int]) -> Tensor:
    """Return rows of logits. A single row is not copied."""
    return logits[indices[0]][None] if len(indices) == 1 else logits[indices]


def _argmax(values: Tensor) -> Tensor:
    """Return values.argmax(dim=-1), for values of shape (n, vocab_size).

    Ties go to the first index; NaN counts as largest.
    """
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
