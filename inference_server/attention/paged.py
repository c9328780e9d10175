"""Attends over the paged KV cache, as an attention function that transformers calls by the name `tailrace`.

A transformers model computes queries, keys and values, applies its positions, and passes them to `attend`. The batch of
the forward pass (PrefillBatch or DecodeBatch, passed through the model as the keyword argument `step_batch`) writes keys
and values into the cache and attends. transformers passes no mask to a registered attention, so causality and sliding
windows are applied here. Fused modules (cpu/fused_modules.py) pass the output of the projections instead; one kernel then
rotates and writes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_server.attention import flash_attention
from inference_server.attention.kv_cache import KVCache
from inference_server.attention.torch_attention import (
    AttentionSpec,
    causal_attention,
    causal_mask,
    gathered_decode_attention,
)
from inference_server.errors import UnsupportedModel
from inference_server.kernels import ops

NAME = "tailrace"

# Keyword arguments of transformers models that have no effect on this attention.
_IGNORED = {
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
    """Attend as transformers' attention interface defines it.

    Args:
        module: The attention module, whose `layer_idx` is the layer's number.
        query: (batch, num_heads, num_tokens, head_dim), positions applied.
        key: (batch, num_kv_heads, num_tokens, head_dim), positions applied.
        value: (batch, num_kv_heads, num_tokens, value_dim).
        attention_mask: None; other masks are not supported.
        step_batch: The batch of this forward pass.
        scaling: The factor on the scores; None for head_dim ** -0.5.
        sliding_window: In tokens; None attends to all keys so far.
        softcap: The limit c of c * tanh(score / c); None for no limit.
        kwargs: Further arguments of the model, of which some are ignored.

    Returns:
        (batch, num_tokens, num_heads, value_dim), and None in place of the attention weights.

    Raises:
        UnsupportedModel: The model passes an argument that this attention would have to ignore (attention sinks,
            position biases, …).
    """
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _IGNORED)
    if unknown or attention_mask is not None or kwargs.get("is_causal") is False:
        raise UnsupportedModel(f"its attention needs {', '.join(unknown) or 'a mask of its own'}")
    spec = AttentionSpec(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    layer: int = module.layer_idx  # type: ignore[assignment]
    # One row of many tokens (prefill) and many rows of one token (decode) are flattened to the same shape.
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    output = step_batch.attend(layer, query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), spec)
    return output.view(*query.shape[:2], *output.shape[1:]), None


def register() -> None:
    """Register `attend` with transformers under NAME. Imports transformers, which takes more than a second."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


@dataclass(frozen=True, slots=True)
class Projections:
    """The outputs of one fused layer's projections, before rotation."""

    qkv: Tensor  # (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    cos: Tensor  # (num_tokens, head_dim)
    sin: Tensor  # (num_tokens, head_dim)
    num_heads: int
    num_kv_heads: int

    @property
    def head_dim(self) -> int:
        """Return the width of a head."""
        return self.qkv.shape[-1] // (self.num_heads + 2 * self.num_kv_heads)


class _Batch(ABC):
    """A forward pass's tokens and their rows of the KV cache."""

    def __init__(self, cache: KVCache, rows: Tensor) -> None:
        """`rows`: (num_tokens,) int64, the cache rows of the tokens."""
        self.windows: dict[int, int | None] = {}  # by layer, the sliding window that the model passed
        self._cache = cache
        self._rows = rows

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """Write keys and values into the cache and attend.

        Args:
            layer: The layer's number.
            query: (num_tokens, num_heads, head_dim), positions applied.
            key: (num_tokens, num_kv_heads, head_dim), positions applied.
            value: (num_tokens, num_kv_heads, value_dim).
            spec: The attention's constants.

        Returns:
            (num_tokens, num_heads, value_dim).
        """
        keys, values = self._cache.layer(layer, key, value)
        keys.flatten(0, 1).index_copy_(0, self._rows, key.to(keys.dtype))
        values.flatten(0, 1).index_copy_(0, self._rows, value.to(values.dtype))
        self.windows[layer] = spec.sliding_window
        return self._attend(query, keys, values, spec)

    def attend_fused(self, layer: int, parts: Projections, spec: AttentionSpec) -> Tensor:
        """Rotate, write keys and values into the cache, and attend. Returns (num_tokens, num_heads, head_dim)."""
        like = parts.qkv.new_empty((0, parts.num_kv_heads, parts.head_dim))
        keys, values = self._cache.layer(layer, like, like)
        query = ops.rope_and_write(
            parts.qkv, parts.cos, parts.sin, keys, values, self._rows, parts.num_heads, parts.num_kv_heads
        )
        self.windows[layer] = spec.sliding_window
        return self._attend(query, keys, values, spec)

    @abstractmethod
    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        """Attend over the layer's cache, which contains the new keys and values.

        Args:
            query: (num_tokens, num_heads, head_dim).
            keys: (num_blocks, block_size, num_kv_heads, head_dim).
            values: (num_blocks, block_size, num_kv_heads, value_dim).
            spec: The attention's constants.

        Returns:
            (num_tokens, num_heads, value_dim) in the queries' dtype.
        """


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive prompt tokens of the sequence in `block_ids`: `length` tokens, the first at position `start`."""

    block_ids: Items[int]
    start: int
    length: int

    @property
    def end(self) -> int:
        """Return the position after the last token."""
        return self.start + self.length


def prefill_inputs(cache: KVCache, segments: Items[Segment]) -> tuple[list[Tensor], Tensor]:
    """Return the segments' block tables, each (num_blocks,) int32, and their tokens' cache rows, (num_tokens,) int64."""
    size, device = cache.block_size, cache.device
    tables = [torch.tensor(s.block_ids[: -(-s.end // size)], dtype=torch.int32, device=device) for s in segments]
    rows = []
    for segment, table in zip(segments, tables, strict=True):
        positions = torch.arange(segment.start, segment.end, device=device)
        rows.append(table[positions // size].long() * size + positions % size)
    return tables, torch.cat(rows)


class PrefillBatch(_Batch):
    """A forward pass of chunks of several prompts, concatenated."""

    def __init__(self, cache: KVCache, segments: list[Segment]) -> None:
        self._segments = segments
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}  # by segment and window, shared by layers
        self._blocks, rows = prefill_inputs(cache, segments)
        super().__init__(cache, rows)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        outputs = []
        offset = 0
        for index, segment in enumerate(self._segments):
            rows = query[offset : offset + segment.length]
            output = None
            if spec.softcap is None and (spec.sliding_window is None or spec.sliding_window >= segment.end):
                blocks = self._blocks[index]
                output = ops.paged_prefill_attention(rows, keys, values, blocks, segment.start, spec.scaling)
            outputs.append(self._gathered(index, rows, keys, values, spec) if output is None else output)
            offset += segment.length
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _gathered(self, index: int, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        blocks, end = self._blocks[index], self._segments[index].end
        rows = query.to(keys.dtype)
        key, value = (cached[blocks].flatten(0, 1)[:end] for cached in (keys, values))
        return causal_attention(rows, key, value, spec, self._mask(index, spec, rows)).to(query.dtype)

    def _mask(self, index: int, spec: AttentionSpec, query: Tensor) -> Tensor | None:
        place = (index, spec.sliding_window)
        if place not in self._masks:
            segment = self._segments[index]
            self._masks[place] = causal_mask(segment.length, segment.end, spec, query)
        return self._masks[place]


class DecodeBatch(_Batch):
    """A forward pass of one token of each sequence. Rows of length 0 are padding and write to the scratch block."""

    def __init__(self, cache: KVCache, table: Tensor, lengths: Tensor, rows: Tensor) -> None:
        """Describe the new tokens.

        Args:
            cache: The KV cache.
            table: (n, max_blocks) int32, the block tables.
            lengths: (n,) int32, the sequences' lengths with the new token.
            rows: (n,) int64, the cache rows of the new tokens.
        """
        super().__init__(cache, rows)
        self._table = table
        self._lengths = lengths

    @classmethod
    def from_positions(
        cls, cache: KVCache, block_ids: Items[Items[int]], positions: Items[int], *, num_rows: int, num_blocks: int = 0
    ) -> "DecodeBatch":
        """Return the batch of each sequence's newest token, padded.

        Args:
            cache: The KV cache.
            block_ids: The blocks of each sequence.
            positions: The position of each new token.
            num_rows: The number of rows after padding.
            num_blocks: The least width of the block tables.
        """
        table, lengths, rows = decode_inputs(cache.block_size, block_ids, positions, num_rows, num_blocks)
        return cls(cache, table.to(cache.device), lengths.to(cache.device), rows.to(cache.device))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        if query.device.type == "cpu":
            return ops.paged_decode_attention(
                query,
                keys,
                values,
                self._table,
                self._lengths,
                spec.scaling,
                sliding_window=spec.sliding_window,
                softcap=spec.softcap,
            )
        if flash_attention.supports(query, keys, values, spec):
            return flash_attention.attention(query, keys, values, self._table, self._lengths, spec)
        return gathered_decode_attention(query, keys, values, self._table, self._lengths, spec)


def decode_inputs(
    block_size: int, block_ids: Items[Items[int]], positions: Items[int], num_rows: int, num_blocks: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return table, lengths and rows of a DecodeBatch, on the CPU.

    Padding rows are zeros: length 0, cache row 0 of the scratch block. The parameters are the same as for
    DecodeBatch.from_positions.
    """
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
