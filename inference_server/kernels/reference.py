"""Computes the operations of ops.py with torch: used where kernels cannot run, and for the tests' expected results.

Shapes and dtypes are the same as for the functions of the same names in ops.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_server.kernels.jit.arguments import HeadNorms


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of each row, computed in float32 and rounded to x's dtype, times `weight`."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu of the first half of each row times its second half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return each head (a, b) of `x` rotated to (a cos - b sin, b cos + a sin).

    Shapes: `x` (n, heads, head_dim), `cos` and `sin` (n, head_dim).
    """
    low, high = x.float().chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return (x.float() * cos.float()[:, None] + turned * sin.float()[:, None]).to(x.dtype)


def rope_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    num_heads: int,
    num_kv_heads: int,
    norms: HeadNorms | None = None,
) -> Tensor:
    """Normalise query and key heads if there are norms, rotate them, write keys and values, and return the queries."""
    width = keys.shape[-1]
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, width)
    query, key, value = heads.tensor_split([num_heads, num_heads + num_kv_heads], dim=1)
    if norms is not None:
        query, key = rms_norm(query, norms.query, norms.eps), rms_norm(key, norms.key, norms.eps)
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
    sinks: Tensor | None = None,
) -> Tensor:
    """Return the attention of each sequence's newest token, by gathering all keys and values and masking the scores."""
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
    key = keys[blocks.long()].flatten(1, 2)[:, :longest].float()  # (n, longest, num_kv_heads, head_dim)
    value = values[blocks.long()].flatten(1, 2)[:, :longest].float().where(seen[:, :, None, None], 0.0)
    grouped = query.view(num_seqs, num_kv_heads, -1, width).float()
    scores = torch.einsum("nkgd,nlkd->nkgl", grouped, key) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(num_kv_heads, -1, 1).expand(num_seqs, -1, -1, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :longest].where(lengths[:, None, None, None] > 0, 0.0)
    output = torch.einsum("nkgl,nlkd->nkgd", weights, value)
    return output.reshape(num_seqs, num_heads, value_width).to(query.dtype)
