"""Rotary position embedding of queries and keys, with the write of keys and values into the paged cache.

A program computes several neighbouring heads of one token. A row of the input contains a token's queries, then keys,
then values. One kernel handles all three, with a mask for each.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import triton
import triton.language as tl
from torch import Tensor

from inference_server.gpu.kernels.compile_case import BFLOAT16_CAPABILITIES, CAPABILITIES, CompileCase, pointers

# Number of elements that a program rotates in each half of its heads: eight for each thread of its two warps, so that a
# thread loads 16 bytes at a time.
_ELEMENTS = 512
_NUM_WARPS = 2


@triton.jit
def _norm(low, high, weight, columns, inside, width, eps, dtype: tl.constexpr):
    """Return the two halves of RMS-normalised heads, each (heads, half) float32.

    Values are rounded to `dtype` before and after the multiplication by the weight, as in norms.py.
    """
    mean = (tl.sum(low * low, 1) + tl.sum(high * high, 1)) / width
    scale = tl.rsqrt(mean + eps)[:, None]
    low_weight = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    high_weight = tl.load(weight + width // 2 + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    low = (low * scale).to(dtype).to(tl.float32) * low_weight
    high = (high * scale).to(dtype).to(tl.float32) * high_weight
    return low.to(dtype).to(tl.float32), high.to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["rows_stride"], do_not_specialize_on_alignment=["rows"])
def rope_and_write_kernel(
    qkv,
    cos,
    sin,
    keys,
    values,
    rows,
    out,
    query_norm,
    key_norm,
    rows_stride,
    num_heads,
    num_kv_heads,
    width,
    eps,
    HAS_NORMS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Program (t, i): HEADS heads of token t, of `width` elements each. HALF is half a head's width, padded."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, HALF)
    half = width // 2
    inside = columns < half
    dtype = qkv.dtype.element_ty
    is_query = head < num_heads
    is_key = (head >= num_heads) & (head < num_heads + num_kv_heads)
    is_value = (head >= num_heads + num_kv_heads) & (head < num_heads + 2 * num_kv_heads)
    mask = (head < num_heads + 2 * num_kv_heads)[:, None] & inside[None, :]
    source = qkv + token * (num_heads + 2 * num_kv_heads) * width + head[:, None] * width + columns[None, :]
    low = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)

    # The token's row of the cache, which contains num_kv_heads heads.
    row = tl.load(rows + token * rows_stride).to(tl.int64)
    value_place = values + (row * num_kv_heads + head[:, None] - num_heads - num_kv_heads) * width + columns[None, :]
    tl.store(value_place, low.to(values.dtype.element_ty), mask=mask & is_value[:, None])
    tl.store(value_place + half, high.to(values.dtype.element_ty), mask=mask & is_value[:, None])

    if HAS_NORMS:
        query_low, query_high = _norm(low, high, query_norm, columns, inside, width, eps, dtype)
        key_low, key_high = _norm(low, high, key_norm, columns, inside, width, eps, dtype)
        low = tl.where(is_query[:, None], query_low, key_low)
        high = tl.where(is_query[:, None], query_high, key_high)
    # Both halves of a row of cos, and of sin, are equal.
    cosine = tl.load(cos + token * width + columns, mask=inside, other=0.0)[None, :]
    sine = tl.load(sin + token * width + columns, mask=inside, other=0.0)[None, :]
    rotated_low = (low * cosine - high * sine).to(dtype)
    rotated_high = (high * cosine + low * sine).to(dtype)

    query_place = out + (token * num_heads + head[:, None]) * width + columns[None, :]
    tl.store(query_place, rotated_low, mask=mask & is_query[:, None])
    tl.store(query_place + half, rotated_high, mask=mask & is_query[:, None])
    key_place = keys + (row * num_kv_heads + head[:, None] - num_heads) * width + columns[None, :]
    tl.store(key_place, rotated_low.to(keys.dtype.element_ty), mask=mask & is_key[:, None])
    tl.store(key_place + half, rotated_high.to(keys.dtype.element_ty), mask=mask & is_key[:, None])


def rope_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    num_heads: int,
    num_kv_heads: int,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Write rotated keys and values into the cache, and return the rotated queries; see ops.rope_and_write.

    head_dim is even and up to 256. Heads are normalised only if both norms are present.
    """
    tokens, width = qkv.shape[0], keys.shape[-1]
    out = qkv.new_empty(tokens, num_heads, width)
    if tokens == 0:
        return out
    half = triton.next_power_of_2(width // 2)
    heads = max(1, _ELEMENTS // half)
    rope_and_write_kernel[(tokens, triton.cdiv(num_heads + 2 * num_kv_heads, heads))](
        qkv,
        cos,
        sin,
        keys,
        values,
        rows,
        out,
        query_norm,
        key_norm,
        rows.stride(0),
        num_heads,
        num_kv_heads,
        width,
        eps,
        HAS_NORMS=query_norm is not None and key_norm is not None,
        HEADS=heads,
        HALF=half,
        num_warps=_NUM_WARPS,
    )
    return out


def _case(dtype: str, width: int, has_norms: bool) -> CompileCase:
    signature = dict.fromkeys(("qkv", "keys", "values", "out"), "*" + dtype)
    signature |= {"cos": "*fp32", "sin": "*fp32", "rows": "*i64", "eps": "fp32"}
    signature |= dict.fromkeys(("rows_stride", "num_heads", "num_kv_heads", "width"), "i32")
    norms = dict.fromkeys(("query_norm", "key_norm"), "*" + dtype)
    signature |= norms if has_norms else {}
    aligned = [name for name in pointers(signature) if name != "rows"]
    constants = {"HAS_NORMS": has_norms, "HEADS": _ELEMENTS // (width // 2), "HALF": width // 2}
    return CompileCase(
        f"rope_and_write {width}{' with norms' if has_norms else ''} {dtype}",
        rope_and_write_kernel,
        signature,
        constants | ({} if has_norms else dict.fromkeys(norms)),
        num_warps=_NUM_WARPS,
        num_stages=3,
        divisible=(*aligned, "width"),
        capabilities=BFLOAT16_CAPABILITIES if dtype == "bf16" else CAPABILITIES,
    )


def compile_cases() -> list[CompileCase]:
    """Return the specialisations for offline compilation: three head widths and both dtypes, with and without norms."""
    return [
        _case(dtype, width, has_norms)
        for dtype in ("fp16", "bf16")
        for width in (64, 128, 256)
        for has_norms in (False, True)
    ]
