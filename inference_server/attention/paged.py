"""Attends over the paged KV cache, as an attention function that transformers calls by the name `tailrace`.

A transformers model computes queries, keys and values, applies its position embedding, and passes them to `attend`. The
batch of the forward pass (PrefillBatch or DecodeBatch) writes keys and values into the cache and attends. The model
passes it on as the argument `step_batch`. transformers passes no mask to a registered attention, so this module
applies causality and sliding windows. Fused modules (cpu/fused_modules.py) call `attend_fused` with the outputs of the
projections instead, and one kernel then rotates queries and keys, and writes keys and values.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_server.attention.backend import AttentionBackend, PromptAttention
from inference_server.attention.kv_cache import KVCache
from inference_server.attention.torch_attention import AttentionSpec
from inference_server.errors import UnsupportedModel
from inference_server.kernels import ops
from inference_server.kernels.jit.arguments import HeadNorms

NAME = "tailrace"

_passes = threading.local()  # attribute `batch`: the batch of the pass that runs on this thread

# Keyword arguments of transformers models that this attention ignores, except that it rejects is_causal=False.
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
    step_batch: "PrefillBatch | DecodeBatch | None" = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface defines it.

    Args:
        module: The attention module, whose `layer_idx` is the layer's number.
        query: (batch, num_heads, num_tokens, head_dim), after position embedding.
        key: (batch, num_kv_heads, num_tokens, head_dim), after position embedding.
        value: (batch, num_kv_heads, num_tokens, value_dim).
        attention_mask: Must be None: this module applies the masks itself.
        step_batch: The batch of this forward pass; None to use the batch that `passing` set, for models whose layers do
            not forward it.
        scaling: Factor that multiplies the scores; None for head_dim ** -0.5.
        sliding_window: Number of newest keys that are attended to; None for all keys so far.
        softcap: The limit c of c * tanh(score / c); None for no limit.
        s_aux: (num_heads,), the attention sinks; None if there are none.
        kwargs: Further arguments of the model. Arguments that are None or in _IGNORED have no effect, except
            is_causal=False.

    Returns:
        (batch, num_tokens, num_heads, value_dim), and None in place of the attention weights.

    Raises:
        UnsupportedModel: The model passes a mask, is_causal=False or another argument that this attention does not
            support, such as position biases.
    """
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _IGNORED)
    if unknown or attention_mask is not None or kwargs.get("is_causal") is False:
        raise UnsupportedModel(f"its attention needs {', '.join(unknown) or 'a mask of its own'}")
    sinks = None if s_aux is None else s_aux.float()
    spec = AttentionSpec(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, sinks)
    layer: int = module.layer_idx  # type: ignore[assignment]
    batch: PrefillBatch | DecodeBatch = step_batch or _passes.batch
    # One row of many tokens (prefill) and many rows of one token (decode) are flattened to the same shape.
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    output = batch.attend(layer, query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), spec)
    return output.view(*query.shape[:2], *output.shape[1:]), None


@contextmanager
def passing(batch: "PrefillBatch | DecodeBatch") -> Iterator[None]:
    """Make `attend` use this batch on this thread during the `with` block, for models that do not forward it."""
    _passes.batch = batch
    try:
        yield
    finally:
        del _passes.batch


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
    norms: HeadNorms | None = None  # norms of query and key heads before the rotation

    @property
    def head_dim(self) -> int:
        """Return the width of a head."""
        return self.qkv.shape[-1] // (self.num_heads + 2 * self.num_kv_heads)


class _Batch(ABC):
    """The tokens of a forward pass, with their rows of the KV cache."""

    def __init__(self, cache: KVCache, rows: Tensor) -> None:
        """Create the batch. `rows`: (num_tokens,) int32 or int64, the cache rows of the tokens."""
        self.windows: dict[int, int | None] = {}  # sliding window that the model passed, by layer
        self._cache = cache
        self._rows = rows.long()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """Write keys and values into the cache and attend.

        Args:
            layer: The layer's number.
            query: (num_tokens, num_heads, head_dim), after position embedding.
            key: (num_tokens, num_kv_heads, head_dim), after position embedding.
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
        """Normalise and rotate, write keys and values into the cache, and attend. Returns (num_tokens, num_heads, head_dim)."""
        like = parts.qkv.new_empty((0, parts.num_kv_heads, parts.head_dim))
        keys, values = self._cache.layer(layer, like, like)
        query = ops.rope_and_write(
            parts.qkv, parts.cos, parts.sin, keys, values, self._rows, parts.num_heads, parts.num_kv_heads, parts.norms
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


class PrefillBatch(_Batch):
    """The batch of a forward pass over the concatenated chunks of several prompts."""

    def __init__(self, cache: KVCache, prompts: PromptAttention) -> None:
        """Create the batch. `prompts`: the segments' attention, as AttentionBackend.prompts returns it."""
        super().__init__(cache, prompts.rows)
        self._prompts = prompts

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        return self._prompts.attend(query, keys, values, spec)


class DecodeBatch(_Batch):
    """The batch of a decode pass, one token in each row.

    Rows of length 0 are padding and write to the scratch block.
    """

    def __init__(self, cache: KVCache, backend: AttentionBackend, table: Tensor, lengths: Tensor, rows: Tensor) -> None:
        """Create the batch for n tokens.

        Args:
            cache: The KV cache.
            backend: The device's attention.
            table: (n, max_blocks) int32, the block table of each token's sequence.
            lengths: (n,) int32, the number of keys that each token attends to, including its own.
            rows: (n,) int32 or int64, the cache rows of the new tokens.
        """
        super().__init__(cache, rows)
        self._backend = backend
        self._table = table
        self._lengths = lengths

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        return self._backend.decode(query, keys, values, self._table, self._lengths, spec)
