"""Computes attention with torch's own operations, on any device.

Unless a function states other shapes, they are query (num_tokens, num_heads, head_dim), key (num_keys, num_kv_heads,
head_dim) and value (num_keys, num_kv_heads, value_dim).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The constants of one layer's attention."""

    scaling: float  # factor that multiplies the scores
    sliding_window: int | None = None  # number of newest keys that are attended to; None for all keys so far
    softcap: float | None = None  # c of c * tanh(score / c); None for no limit
    # (num_heads,) float32, one score for each head that is part of the softmax but has no value; None for no sinks
    sinks: Tensor | None = field(default=None, compare=False)


def causal_mask(num_tokens: int, num_keys: int, spec: AttentionSpec, like: Tensor) -> Tensor | None:
    """Return the additive mask for the newest tokens of a sequence.

    Args:
        num_tokens: The number of queries.
        num_keys: The number of keys, including the keys of the query tokens, which are the last ones.
        spec: The attention's constants.
        like: A tensor with the dtype and device of the mask.

    Returns:
        (num_tokens, num_keys), or None if the argument is_causal of torch's attention replaces the mask.
    """
    window = spec.sliding_window if spec.sliding_window is not None and spec.sliding_window < num_keys else None
    if num_tokens == num_keys and window is None and spec.softcap is None and spec.sinks is None:
        return None
    columns = torch.arange(num_keys, device=like.device)[None, :]
    positions = torch.arange(num_keys - num_tokens, num_keys, device=like.device)[:, None]
    hidden = columns > positions
    if window is not None:
        hidden |= columns <= positions - window
    return _additive(hidden, like)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, mask: Tensor | None) -> Tensor:
    """Attend with the queries of a sequence's newest tokens. `mask`: the result of `causal_mask`.

    Returns (num_tokens, num_heads, value_dim).
    """
    query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
    if mask is None:
        grouped = query.shape[1] != key.shape[1]
        output = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=spec.scaling, enable_gqa=grouped
        )
    else:
        output = _masked_attention(query, key, value, mask, spec)
    return output[0].transpose(0, 1)


def gathered_decode_attention(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, spec: AttentionSpec
) -> Tensor:
    """Attend with n queries, each to the keys of its sequence, on copies of the paged keys and values.

    Used for devices and AttentionSpecs without a kernel that reads the cache in place.

    Args:
        query: (n, num_heads, head_dim).
        keys: (num_blocks, block_size, num_kv_heads, head_dim).
        values: (num_blocks, block_size, num_kv_heads, value_dim).
        table: (n, max_blocks) int, the block table of each query's sequence.
        lengths: (n,) int, the number of keys that each query attends to. The result of a row of length 0 is finite.
        spec: The attention's constants.

    Returns:
        (n, num_heads, value_dim).
    """
    key = keys[table.long()].flatten(1, 2).transpose(1, 2)
    value = values[table.long()].flatten(1, 2).transpose(1, 2)
    columns = torch.arange(key.shape[2], device=query.device)[None, :]
    hidden = columns >= lengths[:, None].clamp(min=1)
    # Values beyond a sequence's end are undefined, and a weight of zero would not remove NaN.
    key, value = (tensor.masked_fill(hidden[:, None, :, None], 0.0) for tensor in (key, value))
    if spec.sliding_window is not None:
        hidden = hidden | (columns < lengths[:, None] - spec.sliding_window)
    mask = _additive(hidden, query)[:, None, None, :]
    return _masked_attention(query.unsqueeze(2), key, value, mask, spec).squeeze(2)


def _additive(hidden: Tensor, like: Tensor) -> Tensor:
    """Return 0 for visible keys and -infinity for hidden ones."""
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def _masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, spec: AttentionSpec) -> Tensor:
    """Attend with an additive mask.

    Args:
        query: (n, num_heads, num_rows, head_dim).
        key: (n, num_kv_heads, num_keys, head_dim).
        value: (n, num_kv_heads, num_keys, value_dim).
        mask: Broadcasts to (n, num_heads, num_rows, num_keys).
        spec: The attention's constants.

    Returns:
        (n, num_heads, num_rows, value_dim).
    """
    if spec.softcap is None and spec.sinks is None:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=spec.scaling, enable_gqa=grouped)
    # Gemma 2 limits scores by softcap * tanh(scores / softcap) before the mask, and gpt-oss has sinks. torch's fused
    # kernels support neither.
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(2, 3) * spec.scaling
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores = (scores + mask).float()
    if spec.sinks is not None:
        sinks = spec.sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    return torch.softmax(scores, dim=-1)[..., : key.shape[2]].to(query.dtype) @ value
