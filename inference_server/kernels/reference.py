"""What the kernels compute, in plain torch: the way out where they cannot run, and what tests compare them with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (n, heads, D), cos and sin (n, D)."""
    low, high = x.float().chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return (x.float() * cos.float()[:, None] + turned * sin.float()[:, None]).to(x.dtype)


def rope_and_write(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, rows: Tensor, num_heads: int, num_kv_heads: int
) -> Tensor:
    width = keys.shape[-1]
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, width)
    query, key, value = heads.tensor_split([num_heads, num_heads + num_kv_heads], dim=1)
    keys.view(-1, num_kv_heads, width).index_copy_(0, rows, _rotated(key, cos, sin).to(keys.dtype))
    values.view(-1, num_kv_heads, width).index_copy_(0, rows, value.to(values.dtype))
    return _rotated(query, cos, sin)


def paged_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    num_seqs, num_heads, width = query.shape
    _, block_size, num_kv_heads, value_width = values.shape
    longest = int(lengths.max())
    if longest == 0:
        return query.new_zeros(num_seqs, num_heads, value_width)
    positions = torch.arange(longest, device=query.device)
    seen = positions < lengths[:, None]  # (n, longest)
    if sliding_window is not None:
        seen &= positions >= lengths[:, None] - sliding_window
    blocks = block_table[:, : -(-longest // block_size)]
    blocks = blocks.where(torch.arange(blocks.shape[1], device=query.device) * block_size < lengths[:, None], 0)
    key = keys[blocks.long()].flatten(1, 2)[:, :longest].float()  # (n, longest, K, D)
    value = values[blocks.long()].flatten(1, 2)[:, :longest].float().where(seen[:, :, None, None], 0.0)
    grouped = query.view(num_seqs, num_kv_heads, -1, width).float()
    scores = torch.einsum("nkgd,nlkd->nkgl", grouped, key) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    weights = torch.softmax(scores, dim=-1).where(lengths[:, None, None, None] > 0, 0.0)
    output = torch.einsum("nkgl,nlkd->nkgd", weights, value)
    return output.reshape(num_seqs, num_heads, value_width).to(query.dtype)
