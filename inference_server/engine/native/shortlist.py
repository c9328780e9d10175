"""Samples among the likeliest tokens only: the candidates that min_p, top_k and top_p leave.

Rows of a batch do not influence each other. Shortlist does not wait for the device, but draw_from_likeliest does. This
module works on token ids, not on text.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server.engine.native import gumbel as noise
from inference_server.generation import SamplingParams

# Number of likeliest tokens that are sorted first. The whole vocabulary is sorted only if top_k or top_p needs more.
SHORTLIST = 256
# Number of tokens per piece in the search for the shortlist.
_SMALL_PIECE = 32
_NO_TOP_K = 2**62
_NO_TOP_P = 2.0  # above 1, so that no token is excluded even if rounding brings the sum of probabilities to 1 early


def is_narrowed(params: SamplingParams) -> bool:
    """Return True if top_k or top_p may exclude tokens."""
    return params.top_k is not None or params.top_p < 1.0


def logit_depth(params: SamplingParams) -> float:
    """Return the smallest logit that min_p keeps minus the largest one, at most 0; -infinity if min_p has no effect."""
    return params.temperature * math.log(params.min_p) if params.min_p and not params.is_greedy else -math.inf


def logit_depths(params: Items[SamplingParams]) -> Tensor | None:
    """Return `logit_depth` of each row on the CPU, float32 of shape (num_rows, 1); None if all are -infinity."""
    depths = [logit_depth(param) for param in params]
    return torch.tensor(depths, dtype=torch.float32)[:, None] if max(depths) > -math.inf else None


def without_unlikely(logits: Tensor, depths: Tensor) -> Tensor:
    """Return logits in new memory, with -infinity for the tokens that min_p excludes.

    Args:
        logits: float32 of shape (num_rows, vocab_size).
        depths: From `logit_depths`, on the device of the logits.
    """
    return torch.where(logits >= logits.amax(dim=-1, keepdim=True) + depths, logits, -torch.inf)


@dataclass(frozen=True, slots=True)
class Limits:
    """The top_k and top_p of each row of a batch.

    Attributes:
        top_k: int64 of shape (num_rows, 1).
        top_p: float64 of shape (num_rows, 1).
        has_open: True if any row has no top_k.
        has_min_p: True if any row has a min_p.
    """

    top_k: Tensor
    top_p: Tensor
    has_open: bool
    has_min_p: bool

    @classmethod
    def of(cls, params: Items[SamplingParams], upload: Callable[[Tensor], Tensor]) -> "Limits":
        """Return the limits from sampling parameters.

        `upload` moves a tensor from the CPU to the device of the logits.
        """
        top_k = [min(param.top_k or _NO_TOP_K, _NO_TOP_K) for param in params]
        top_p = [param.top_p if param.top_p < 1.0 else _NO_TOP_P for param in params]
        columns = upload(torch.tensor(top_k)[:, None]), upload(torch.tensor(top_p, dtype=torch.float64)[:, None])
        has_min_p = any(param.min_p for param in params)
        return cls(*columns, has_open=max(top_k) == _NO_TOP_K, has_min_p=has_min_p)


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The likeliest tokens of each row.

    Attributes:
        values: Logits / temperature in descending order, float32 of shape (num_rows, size).
        ids: Their token ids, int64 of shape (num_rows, size).
        scaled: Logits / temperature of the whole vocabulary, in any order, shape (num_rows, vocab_size).
    """

    values: Tensor
    ids: Tensor
    scaled: Tensor

    @classmethod
    def likeliest(cls, scaled: Tensor) -> "Shortlist":
        """Return the SHORTLIST likeliest tokens of each row. `scaled`: float32 of shape (num_rows, vocab_size)."""
        return cls(*_topk(scaled, min(SHORTLIST, scaled.shape[-1])), scaled)

    @classmethod
    def whole(cls, scaled: Tensor) -> "Shortlist":
        """Return the sorted vocabulary. `scaled`: float32 of shape (num_rows, vocab_size)."""
        values, ids = torch.sort(scaled, descending=True, stable=True)
        return cls(values, ids, values)

    def with_equals_by_id(self) -> "Shortlist":
        """Return the same list with equal values ordered by token id, as in the compiled kernel."""
        ids, places = self.ids.sort(dim=-1)
        values, order = self.values.gather(-1, places).sort(dim=-1, descending=True, stable=True)
        return Shortlist(values, ids.gather(-1, order), self.scaled)

    def pick(self, limits: Limits, keys: Items[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return the sampled token of each row, int64 of shape (num_rows,), and whether its list contains all candidates.

        top_k applies first. top_p then refers to the probabilities of the remaining tokens. The token of a row whose
        list lacks candidates is undefined.

        Args:
            limits: top_k and top_p of each row, on the device of the list.
            keys: A key for each row, or int32 of shape (num_rows, 2) on the device, as in gumbel.Keys.
        """
        size, top_k = self.values.shape[-1], limits.top_k
        is_kept = torch.arange(size, device=self.values.device) < top_k
        weights = (self.values - self.values[:, :1]).double().exp() * is_kept
        reached = weights.cumsum(dim=-1)
        total = reached[:, -1:]
        is_settled = top_k <= size
        if limits.has_open:
            everything = (self.scaled.logsumexp(dim=-1, keepdim=True) - self.values[:, :1]).double().exp()
            total = torch.where(top_k < _NO_TOP_K, total, everything)
            is_settled = is_settled | ((top_k >= _NO_TOP_K) & (reached[:, -1:] >= limits.top_p * total))
        if limits.has_min_p:
            is_settled = is_settled | (self.values[:, -1:] == -torch.inf)  # min_p excludes every other token
        is_kept &= reached - weights < limits.top_p * total
        if isinstance(keys, Tensor):
            uniforms = noise.uniform_of_some(keys, self.ids, self.scaled.shape[-1])
        else:
            uniforms = noise.uniform(keys, self.ids)
        scores = self.values + noise.gumbel(uniforms)
        places = torch.where(is_kept, scores, -torch.inf).argmax(dim=-1, keepdim=True)
        return self.ids.gather(-1, places).squeeze(-1), is_settled.squeeze(-1)


def draw_from_likeliest(
    logits: Tensor, temperatures: Tensor, params: Items[SamplingParams], keys: Items[int]
) -> list[int]:
    """Sample from a sorted shortlist, or from the sorted vocabulary if top_k or top_p needs more tokens.

    Args:
        logits: float32 of shape (num_rows, vocab_size).
        temperatures: float32 of shape (num_rows, 1).
        params: Parameters of each row, with top_k or top_p.
        keys: A key of each row, as in gumbel.key.
    """

    def limits(params: Items[SamplingParams]) -> Limits:
        return Limits.of(params, lambda column: column.to(logits.device))

    scaled = logits / temperatures
    shortlist = Shortlist.likeliest(scaled)
    if logits.device.type == "cpu":
        shortlist = shortlist.with_equals_by_id()
    token_ids, is_settled = shortlist.pick(limits(params), keys)
    chosen: list[int] = torch.where(is_settled, token_ids, -1).tolist()
    if beyond := [index for index, token_id in enumerate(chosen) if token_id < 0]:
        whole = Shortlist.whole(scaled[beyond])
        token_ids, _ = whole.pick(limits([params[index] for index in beyond]), [keys[index] for index in beyond])
        for index, token_id in zip(beyond, token_ids.tolist(), strict=True):
            chosen[index] = token_id
    return chosen


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
