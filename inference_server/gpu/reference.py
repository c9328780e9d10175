"""Plain torch versions of the operators in ops.py: used on a GPU without Triton, and as the tests' expected results.

Shapes and dtypes are the same as for the functions of the same names in ops.py. On a GPU, only paged_prefill_attention
makes the host wait for the device, so a CUDA graph can record a decode pass.
"""

import torch
from torch import Tensor

from inference_server.attention.torch_attention import (
    AttentionSpec,
    causal_attention,
    causal_mask,
    gathered_decode_attention,
)
from inference_server.kernels import reference as cpu_reference

# Number of weights that int8_linear dequantises at a time: 64 MiB in 16 bits.
_MAX_DEQUANTIZED = 32 * 2**20

rms_norm = cpu_reference.rms_norm
silu_mul = cpu_reference.silu_mul


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `delta` to `hidden` in place, and return the RMS norm of the sum."""
    hidden.add_(delta)
    return rms_norm(hidden, weight, eps)


def rope_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    num_heads: int,
    num_kv_heads: int,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """Normalise query and key heads if they have norms, write rotated keys and values, and return rotated queries."""
    if query_norm is not None and key_norm is not None:
        heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, keys.shape[-1])
        query, key, value = heads.tensor_split([num_heads, num_heads + num_kv_heads], dim=1)
        normed = [rms_norm(query, query_norm, eps), rms_norm(key, key_norm, eps), value]
        qkv = torch.cat(normed, dim=1).flatten(1)
    return cpu_reference.rope_and_write(qkv, cos, sin, keys, values, rows.long(), num_heads, num_kv_heads)


def paged_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    num_splits: int,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute attention on contiguous copies of the paged keys and values. `num_splits` has no effect."""
    spec = AttentionSpec(scaling, sliding_window, softcap, sinks)
    return gathered_decode_attention(query, keys, values, table, lengths, spec)


def paged_prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    starts: Tensor,
    lengths: Tensor,
    longest: int,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute attention segment by segment, on contiguous copies of keys and values. `longest` has no effect."""
    spec = AttentionSpec(scaling, sliding_window, softcap, sinks)
    output = query.new_empty(*query.shape[:2], values.shape[-1])
    bounds, ends = starts.cpu().tolist(), lengths.cpu().tolist()
    for index, end in enumerate(ends):
        first, last = bounds[index], bounds[index + 1]
        if first == last:
            continue
        blocks = table[index, : -(-end // keys.shape[1])].long()
        key, value = (cached[blocks].flatten(0, 1)[:end] for cached in (keys, values))
        rows = query[first:last].to(keys.dtype)
        mask = causal_mask(last - first, end, spec, rows)
        output[first:last] = causal_attention(rows, key, value, spec, mask)
    return output


def int8_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Dequantise the weights to x's dtype, then multiply. Large layers are computed in parts, to limit the memory."""
    num_rows, width = x.shape
    num_outputs = codes.shape[0]
    output = x.new_empty(num_rows, num_outputs)
    step = max(1, _MAX_DEQUANTIZED // width)
    weight = x.new_empty(min(step, num_outputs), width)
    for start in range(0, num_outputs, step):
        part = slice(start, start + step)
        piece = weight[: codes[part].shape[0]]
        torch.mul(codes[part], scales[part, None], out=piece)  # computed in float32 and rounded once
        if bias is None:
            torch.mm(x, piece.t(), out=output[:, part])
        else:
            torch.addmm(bias[part].to(x.dtype), x, piece.t(), out=output[:, part])
    return output
