"""Attention itself, by torch's own operations: queries against keys and values that belong to one sequence each.

Shapes: query (num_tokens, num_heads, head_dim), key and value (num_keys, num_kv_heads, …). Knows nothing of caches.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Form:
    """How one layer attends: the factor on the scores, the window in tokens, the soft limit of the scores."""

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None


def causal_mask(num_tokens: int, num_keys: int, form: Form, like: Tensor) -> Tensor | None:
    """What causal_attention takes for the newest `num_tokens` of `num_keys`: (num_tokens, num_keys) of the dtype of `like`.

    None where torch's own causal attention does the same without.
    """
    window = form.sliding_window if form.sliding_window is not None and form.sliding_window < num_keys else None
    if num_tokens == num_keys and window is None and form.softcap is None:
        return None
    columns = torch.arange(num_keys, device=like.device)[None, :]
    positions = torch.arange(num_keys - num_tokens, num_keys, device=like.device)[:, None]
    hidden = columns > positions
    if window is not None:
        hidden |= columns <= positions - window
    return _additive(hidden, like)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, form: Form, mask: Tensor | None) -> Tensor:
    """The queries are the newest of the keys' tokens; `mask` by causal_mask. Returns (num_tokens, num_heads, value_dim)."""
    query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
    if mask is None:
        grouped = query.shape[1] != key.shape[1]
        output = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=form.scaling, enable_gqa=grouped
        )
    else:
        output = _masked_attention(query, key, value, mask, form)
    return output[0].transpose(0, 1)


def gathered_decode_attention(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, form: Form
) -> Tensor:
    """One query for each of n sequences over paged keys and values (num_blocks, block_size, num_kv_heads, …).

    table (n, max_blocks) int, lengths (n,) int: keys that the sequence has; a row of length 0 gives something finite.
    Copies what it reads: for devices and forms that no kernel reads in place. Returns (n, num_heads, value_dim).
    """
    key = keys[table.long()].flatten(1, 2).transpose(1, 2)
    value = values[table.long()].flatten(1, 2).transpose(1, 2)
    columns = torch.arange(key.shape[2], device=query.device)[None, :]
    hidden = columns >= lengths[:, None].clamp(min=1)
    # What lies beyond a sequence's end may be anything, and NaN would survive a weight of zero.
    key, value = (tensor.masked_fill(hidden[:, None, :, None], 0.0) for tensor in (key, value))
    if form.sliding_window is not None:
        hidden = hidden | (columns < lengths[:, None] - form.sliding_window)
    mask = _additive(hidden, query)[:, None, None, :]
    return _masked_attention(query.unsqueeze(2), key, value, mask, form).squeeze(2)


def _additive(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def _masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, form: Form) -> Tensor:
    """(n, heads, rows, d) x (n, kv_heads, keys, d) -> (n, heads, rows, value_dim); the mask is added to the scores."""
    if form.softcap is None:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=form.scaling, enable_gqa=grouped)
    # Gemma 2's form: scores are limited by softcap * tanh(scores / softcap) before the mask. No fused kernel has it.
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.tanh(query @ key.transpose(2, 3) * form.scaling / form.softcap) * form.softcap + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value
