"""Attention over the slots of the KV cache, registered with transformers under the name `tailrace`.

A model of transformers computes queries, keys and values with its own positions and hands them to `attend`; the step's
batch (PrefillBatch or DecodeBatch, passed through the model as the keyword argument `step_batch`) writes keys and values
into the cache and attends. A registered attention is never given a mask, so causality and sliding windows are kept here.

Shapes in transformers' order: query (batch, num_heads, num_tokens, head_dim), key and value the same with num_kv_heads.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from inference_server.errors import UnsupportedModel
from inference_server.kv_cache import KVCache

NAME = "tailrace"

# What a model may hand over although it changes nothing here.
_HARMLESS = {
    "dropout",
    "position_ids",
    "position_embeddings",
    "use_cache",
    "output_attentions",
    "cache_position",
    "is_causal",
    "output_router_logits",
}


@dataclass(frozen=True, slots=True)
class Form:
    """How one layer attends: the factor on the scores, the window in tokens, the soft limit of the scores."""

    scaling: float
    sliding_window: int | None
    softcap: float | None


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step_batch: "PrefillBatch | DecodeBatch",
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. Returns (batch, num_tokens, num_heads, value_dim).

    Raises UnsupportedModel for anything this attention would have to ignore (attention sinks, position biases, …).
    """
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _HARMLESS)
    if unknown or attention_mask is not None or kwargs.get("is_causal") is False:
        raise UnsupportedModel(f"its attention needs {', '.join(unknown) or 'a mask of its own'}")
    form = Form(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return step_batch.attend(layer, query, key, value, form), None


AttentionInterface.register(NAME, attend)


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` prompt tokens of the sequence in `slot`, whose first has the position `start`."""

    slot: int
    start: int
    length: int


class PrefillBatch:
    """Chunks of several prompts, one after the other in one row: query is (1, num_heads, num_tokens, head_dim)."""

    def __init__(self, cache: KVCache, segments: list[Segment]) -> None:
        self.windows: dict[int, int | None] = {}  # by layer, as the model asked for them
        self._cache = cache
        self._segments = segments
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        keys, values = self._cache.layer(layer, key, value)
        self.windows[layer] = form.sliding_window
        outputs = []
        offset = 0
        for index, segment in enumerate(self._segments):
            tokens = slice(offset, offset + segment.length)
            end = segment.start + segment.length
            keys[segment.slot, :, segment.start : end] = key[0, :, tokens]
            values[segment.slot, :, segment.start : end] = value[0, :, tokens]
            outputs.append(
                _attention(
                    query[:, :, tokens],
                    keys[segment.slot, :, :end].unsqueeze(0),
                    values[segment.slot, :, :end].unsqueeze(0),
                    self._mask(index, form.sliding_window, query),
                    form,
                )
            )
            offset = tokens.stop
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _mask(self, index: int, window: int | None, query: Tensor) -> Tensor | None:
        """Added to the scores of one segment, (num_tokens, num_keys); None if the newest token may see everything."""
        if (index, window) not in self._masks:
            segment = self._segments[index]
            end = segment.start + segment.length
            rows = torch.arange(segment.start, end, device=query.device)[:, None]
            columns = torch.arange(end, device=query.device)[None, :]
            hidden = columns > rows
            if window is not None:
                hidden |= columns <= rows - window
            self._masks[index, window] = _additive(hidden, query) if segment.length > 1 or window is not None else None
        return self._masks[index, window]


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring slots: rows `rows` of the batch are slots `slots` of the cache."""

    rows: slice
    slots: slice
    num_keys: int  # of the longest sequence among them


class DecodeBatch:
    """One token each of several sequences, ordered by slot: query is (num_seqs, num_heads, 1, head_dim).

    Neighbouring slots are read in one call without copying, each run as far as its longest sequence reaches.
    """

    def __init__(self, cache: KVCache, slots: list[int], positions: list[int]) -> None:
        self._cache = cache
        self._slots = torch.tensor(slots, device=cache.device)
        self._positions = torch.tensor(positions, device=cache.device)
        self._runs = list(_runs(slots, positions))
        self._cache_rows: dict[int, Tensor] = {}
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        keys, values = self._cache.layer(layer, key, value)
        rows = self._rows(keys.shape[1])
        for cached, new in ((keys, key), (values, value)):
            cached.view(-1, cached.shape[-1]).index_copy_(0, rows, new.reshape(-1, new.shape[-1]))
        outputs = [
            _attention(
                _queries_by_kv_head(query[run.rows], keys.shape[1]),
                keys[run.slots, :, : run.num_keys],
                values[run.slots, :, : run.num_keys],
                self._mask(index, form.sliding_window, query),
                form,
            )
            for index, run in enumerate(self._runs)
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output.reshape(query.shape[0], 1, query.shape[1], -1)

    def _rows(self, num_kv_heads: int) -> Tensor:
        """Where in a layer's keys, seen as (num_slots * num_kv_heads * max_len, head_dim), the new tokens go."""
        if num_kv_heads not in self._cache_rows:
            heads = torch.arange(num_kv_heads, device=self._cache.device)[None, :]
            first = (self._slots[:, None] * num_kv_heads + heads) * self._cache.max_len
            self._cache_rows[num_kv_heads] = (first + self._positions[:, None]).reshape(-1)
        return self._cache_rows[num_kv_heads]

    def _mask(self, index: int, window: int | None, query: Tensor) -> Tensor | None:
        """Added to the scores of one run, (num_seqs, 1, 1, num_keys); None if each sequence may see all that is read."""
        if (index, window) not in self._masks:
            run = self._runs[index]
            positions = self._positions[run.rows, None]
            columns = torch.arange(run.num_keys, device=query.device)[None, :]
            hidden = columns > positions
            if window is not None:
                hidden |= columns <= positions - window
            is_alone = run.rows.stop - run.rows.start == 1 and (window is None or run.num_keys <= window)
            self._masks[index, window] = None if is_alone else _additive(hidden, query)[:, None, None, :]
        return self._masks[index, window]


def _runs(slots: list[int], positions: list[int]) -> list[_Run]:
    """Groups rows whose slots follow each other; `slots` ascend."""
    runs = []
    for _, group in groupby(range(len(slots)), key=lambda row: slots[row] - row):
        rows = list(group)
        first, last = rows[0], rows[-1]
        num_keys = max(positions[row] for row in rows) + 1
        runs.append(_Run(slice(first, last + 1), slice(slots[first], slots[last] + 1), num_keys))
    return runs


def _queries_by_kv_head(query: Tensor, num_kv_heads: int) -> Tensor:
    """(n, num_heads, 1, d) -> (n, num_kv_heads, group, d): the query heads that share a key head become its query rows."""
    return query.reshape(query.shape[0], num_kv_heads, -1, query.shape[-1])


def _additive(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, form: Form) -> Tensor:
    """(n, heads, rows, d) x (n, kv_heads, keys, d) -> (n, heads, rows, value_dim); the mask is added to the scores."""
    if form.softcap is not None:
        return _softcapped_attention(query, key, value, mask, form)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=form.scaling, enable_gqa=grouped)


def _softcapped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, form: Form) -> Tensor:
    """Gemma 2's form: scores are limited by softcap * tanh(scores / softcap) before the mask. No fused kernel has it."""
    assert form.softcap is not None
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.tanh(query @ key.transpose(2, 3) * form.scaling / form.softcap) * form.softcap
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value
