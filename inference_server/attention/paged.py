"""Attention over the paged KV cache, registered with transformers under the name `tailrace`.

A model of transformers computes queries, keys and values with its own positions and hands them to `attend`; the pass's
batch (PrefillBatch or DecodeBatch, passed through the model as the keyword argument `step_batch`) writes keys and values
into the cache and attends. A registered attention is never given a mask, so causality and sliding windows are kept here.
Fused modules (fused.py) hand over the projections' output as it is, and rotation and writing are one kernel.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_server.attention import flash_attention as varlen
from inference_server.attention.kv_cache import KVCache
from inference_server.attention.torch_attention import Form, causal_attention, causal_mask, gathered_decode_attention
from inference_server.errors import UnsupportedModel
from inference_server.kernels import ops as kernels

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
    """transformers' attention interface: query (batch, num_heads, num_tokens, head_dim), key and value the same with
    num_kv_heads. Returns (batch, num_tokens, num_heads, value_dim).

    Raises UnsupportedModel for anything this attention would have to ignore (attention sinks, position biases, …).
    """
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _HARMLESS)
    if unknown or attention_mask is not None or kwargs.get("is_causal") is False:
        raise UnsupportedModel(f"its attention needs {', '.join(unknown) or 'a mask of its own'}")
    form = Form(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    layer: int = module.layer_idx  # type: ignore[assignment]
    # One row of many tokens (prefill) or many rows of one token (decode): the same thing here.
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    output = step_batch.attend(layer, query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), form)
    return output.view(*query.shape[:2], *output.shape[1:]), None


def register() -> None:
    """Make NAME known to transformers, whose models take more than a second to import."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


@dataclass(frozen=True, slots=True)
class Projections:
    """Of one fused layer: qkv (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim), not yet rotated by cos and sin
    (num_tokens, head_dim)."""

    qkv: Tensor
    cos: Tensor
    sin: Tensor
    num_heads: int
    num_kv_heads: int

    @property
    def head_dim(self) -> int:
        return self.qkv.shape[-1] // (self.num_heads + 2 * self.num_kv_heads)


class _Batch(ABC):
    """What both kinds of pass share: where the new tokens' keys and values go."""

    def __init__(self, cache: KVCache, rows: Tensor) -> None:
        """rows: (num_tokens,) int64, of the cache."""
        self.windows: dict[int, int | None] = {}  # by layer, as the model asked for them
        self._cache = cache
        self._rows = rows

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """query (num_tokens, num_heads, head_dim), key and value (num_tokens, num_kv_heads, …), positions applied.

        Returns (num_tokens, num_heads, value_dim).
        """
        keys, values = self._cache.layer(layer, key, value)
        keys.flatten(0, 1).index_copy_(0, self._rows, key.to(keys.dtype))
        values.flatten(0, 1).index_copy_(0, self._rows, value.to(values.dtype))
        self.windows[layer] = form.sliding_window
        return self._attend(query, keys, values, form)

    def attend_fused(self, layer: int, parts: Projections, form: Form) -> Tensor:
        """Returns (num_tokens, num_heads, head_dim)."""
        like = parts.qkv.new_empty((0, parts.num_kv_heads, parts.head_dim))
        keys, values = self._cache.layer(layer, like, like)
        query = kernels.rope_and_write(
            parts.qkv, parts.cos, parts.sin, keys, values, self._rows, parts.num_heads, parts.num_kv_heads
        )
        self.windows[layer] = form.sliding_window
        return self._attend(query, keys, values, form)

    @abstractmethod
    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, form: Form) -> Tensor:
        """query (num_tokens, num_heads, head_dim), keys and values of the whole layer, the new ones written.

        Returns (num_tokens, num_heads, value_dim) in the queries' dtype.
        """


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` tokens of the sequence in `block_ids`, whose first has the position `start`."""

    block_ids: Items[int]
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


def prefill_inputs(cache: KVCache, segments: Items[Segment]) -> tuple[list[Tensor], Tensor]:
    """The segments' block tables, each (num_blocks,) int32, and the rows of their tokens, (num_tokens,) int64."""
    size, device = cache.block_size, cache.device
    tables = [torch.tensor(s.block_ids[: -(-s.end // size)], dtype=torch.int32, device=device) for s in segments]
    rows = []
    for segment, table in zip(segments, tables, strict=True):
        positions = torch.arange(segment.start, segment.end, device=device)
        rows.append(table[positions // size].long() * size + positions % size)
    return tables, torch.cat(rows)


class PrefillBatch(_Batch):
    """Chunks of several prompts, one after the other."""

    def __init__(self, cache: KVCache, segments: list[Segment]) -> None:
        self._segments = segments
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}  # the same for most layers
        self._blocks, rows = prefill_inputs(cache, segments)
        super().__init__(cache, rows)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, form: Form) -> Tensor:
        outputs = []
        offset = 0
        for index, segment in enumerate(self._segments):
            rows = query[offset : offset + segment.length]
            output = None
            if form.softcap is None and (form.sliding_window is None or form.sliding_window >= segment.end):
                blocks = self._blocks[index]
                output = kernels.paged_prefill_attention(rows, keys, values, blocks, segment.start, form.scaling)
            outputs.append(self._gathered(index, rows, keys, values, form) if output is None else output)
            offset += segment.length
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _gathered(self, index: int, query: Tensor, keys: Tensor, values: Tensor, form: Form) -> Tensor:
        blocks, end = self._blocks[index], self._segments[index].end
        rows = query.to(keys.dtype)
        key, value = (cached[blocks].flatten(0, 1)[:end] for cached in (keys, values))
        return causal_attention(rows, key, value, form, self._mask(index, form, rows)).to(query.dtype)

    def _mask(self, index: int, form: Form, query: Tensor) -> Tensor | None:
        place = (index, form.sliding_window)
        if place not in self._masks:
            segment = self._segments[index]
            self._masks[place] = causal_mask(segment.length, segment.end, form, query)
        return self._masks[place]


class DecodeBatch(_Batch):
    """One token each of several sequences. Rows of length 0 are padding: they write to the scratch block."""

    def __init__(self, cache: KVCache, table: Tensor, lengths: Tensor, rows: Tensor) -> None:
        """table (n, max_blocks) int32, lengths (n,) int32 with the new token, rows (n,) int64 of the new tokens."""
        super().__init__(cache, rows)
        self._table = table
        self._lengths = lengths

    @classmethod
    def of(
        cls, cache: KVCache, block_ids: Items[Items[int]], positions: Items[int], *, num_rows: int, num_blocks: int = 0
    ) -> "DecodeBatch":
        """`positions`: of the tokens, each its sequence's newest. `num_rows` and `num_blocks` are filled up with padding."""
        table, lengths, rows = decode_inputs(cache.block_size, block_ids, positions, num_rows, num_blocks)
        return cls(cache, table.to(cache.device), lengths.to(cache.device), rows.to(cache.device))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, form: Form) -> Tensor:
        if query.device.type == "cpu":
            return kernels.paged_decode_attention(
                query,
                keys,
                values,
                self._table,
                self._lengths,
                form.scaling,
                sliding_window=form.sliding_window,
                softcap=form.softcap,
            )
        if varlen.takes(query, keys, values, form):
            return varlen.attention(query, keys, values, self._table, self._lengths, form)
        return gathered_decode_attention(query, keys, values, self._table, self._lengths, form)


def decode_inputs(
    block_size: int, block_ids: Items[Items[int]], positions: Items[int], num_rows: int, num_blocks: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """What DecodeBatch takes, on the CPU. Padding is zeros: of length 0, in row 0 of the scratch block."""
    num_blocks = max(num_blocks, max(positions) // block_size + 1)
    table = torch.zeros((num_rows, num_blocks), dtype=torch.int32)
    lengths = torch.zeros(num_rows, dtype=torch.int32)
    rows = torch.zeros(num_rows, dtype=torch.int64)
    for index, (blocks, position) in enumerate(zip(block_ids, positions, strict=True)):
        used = blocks[: position // block_size + 1]
        table[index, : len(used)] = torch.tensor(used, dtype=torch.int32)
        lengths[index] = position + 1
        rows[index] = used[-1] * block_size + position % block_size
    return table, lengths, rows
