"""Kernels for the CPU, compiled by numba when first wanted: what torch does in many small operations, in one.

Tensors in and out, float32 or bfloat16, arithmetic inside in float32. What a kernel does not take (another device or
dtype, strange widths or strides, no numba) goes through its plain version in reference.py.
"""

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from inference_server.kernels import reference
from inference_server.kernels.amx import tile_config as tiles
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import ENOUGH_NS, Kernel, kernel

_IS_BF16 = {torch.float32: False, torch.bfloat16: True}
_WIDEST_LANES = 16
_WIDEST_HEAD = 256
_SCRATCH_FLOATS = 64_000  # that a thread's stack surely has room for


def available() -> bool:
    """Whether kernels can be compiled here. The first call takes the time to load or compile one."""
    return kernel("rows.silu_mul", False) is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (n, d), weight (d,) of the same dtype. Normalises in float32, casts, multiplies, as transformers' LlamaRMSNorm."""
    dtype = x.dtype
    num_rows, width = x.shape
    function = _kernel("rows.rms_norm", dtype)
    if (
        function is None
        or width % _WIDEST_LANES
        or weight.dtype is not dtype
        or not (x.is_cpu and x.is_contiguous() and weight.is_contiguous())
    ):
        return reference.rms_norm(x, weight, eps)
    out = torch.empty_like(x)
    function.run(arguments.rms_norm(x, weight, out, eps), num_rows, num_rows * width // 4)
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up (n, 2 * m) -> (n, m): silu of the first half times the second."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    function = _kernel("rows.silu_mul", gate_up.dtype)
    if function is None or width % _WIDEST_LANES or not (gate_up.is_cpu and gate_up.is_contiguous()):
        return reference.silu_mul(gate_up)
    out = torch.empty(num_rows, width, dtype=gate_up.dtype)
    function.run(arguments.silu_mul(gate_up, out), num_rows, num_rows * width)
    return out


def rope_and_write(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, rows: Tensor, num_heads: int, num_kv_heads: int
) -> Tensor:
    """Rotates queries and keys, writes keys and values into the cache, returns the queries (n, num_heads, D).

    qkv (n, (num_heads + 2 * num_kv_heads) * D); cos and sin (n, D), float32 or qkv's dtype; keys and values
    (num_blocks, block_size, num_kv_heads, D) in a dtype of their own; rows (n,) int64: block * block_size + offset.
    """
    dtype = qkv.dtype
    width = keys.shape[-1]
    if not (
        qkv.is_cpu
        and keys.dtype is values.dtype
        and (cos.dtype is dtype or cos.dtype is torch.float32)
        and sin.dtype is cos.dtype
        and rows.dtype is torch.int64
        and values.shape[-1] == cos.shape[-1] == width
        and qkv.is_contiguous()
        and cos.is_contiguous()
        and sin.is_contiguous()
        and rows.is_contiguous()
        and keys.is_contiguous()
        and values.is_contiguous()
        and (function := _kernel("rows.rope_and_write", dtype, cos.dtype, keys.dtype)) is not None
    ):
        return reference.rope_and_write(qkv, cos, sin, keys, values, rows, num_heads, num_kv_heads)
    num_rows = qkv.shape[0]
    query = torch.empty(num_rows, num_heads, width, dtype=dtype)
    block = arguments.rope_and_write(qkv, cos, sin, keys, values, rows, query)
    function.run(block, num_rows, num_rows * qkv.shape[1] // 2)
    return query


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
    """Attention of each sequence's newest token, at position lengths - 1, over its keys. Returns (n, num_heads, Dv).

    query (n, num_heads, D); keys (num_blocks, block_size, K, D), values the same with Dv, in a dtype of their own;
    block_table (n, max_blocks) int32, its rows may lie apart; lengths (n,) int32, 0 for a row that shall be zeros. Nothing
    beyond a length is read. A sequence's result has the same bits whoever else is in the batch and however many threads
    there are.
    """
    num_seqs, num_heads, width = query.shape
    _, block_size, num_kv_heads, value_width = values.shape
    group = num_heads // num_kv_heads
    function = _kernel("decode.attention", query.dtype, keys.dtype)
    if (
        function is None
        or width % _WIDEST_LANES
        or value_width % _WIDEST_LANES
        or group * (width + value_width + 64) + width * _WIDEST_LANES > _SCRATCH_FLOATS
        or not _attention_tensors_fit(query, keys, values, block_table, lengths)
    ):
        return reference.paged_decode_attention(
            query, keys, values, block_table, lengths, scaling, sliding_window, softcap
        )
    out = torch.empty(num_seqs, num_heads, value_width, dtype=query.dtype)
    block = arguments.attention(query, keys, values, block_table, lengths, out, scaling, sliding_window, softcap)
    function.run(block, num_seqs * num_kv_heads, ENOUGH_NS)
    return out


def prefill_attention_kernel(query: torch.dtype, keys: Tensor) -> Kernel | None:
    """Of queries of that dtype and keys (num_blocks, block_size, K, D); None where there is none."""
    _, block_size, _, width = keys.shape
    fits = keys.dtype is torch.bfloat16 and width % 32 == 0 and width <= _WIDEST_HEAD and block_size % 32 == 0
    return _kernel("prefill.attention", query) if fits and tiles.are_usable() else None


def paged_prefill_attention(
    query: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, start: int, scaling: float
) -> Tensor | None:
    """Causal attention of consecutive tokens of one sequence, the first at position `start`, over its keys so far.

    query (n, num_heads, D), keys and values (num_blocks, block_size, K, D), blocks (m,) int32: the sequence's, as many as
    it needs. Returns (n, num_heads, D), or None where there is no kernel for it: it takes tiles, bfloat16 keys and
    blocks of a multiple of 32 tokens. A token's result has the same bits however the sequence was cut into chunks.
    """
    num_rows, _, width = query.shape
    function = prefill_attention_kernel(query.dtype, keys)
    if (
        function is None
        or keys.dtype is not values.dtype
        or keys.shape != values.shape
        or blocks.dtype is not torch.int32
        or not all(tensor.is_cpu and tensor.is_contiguous() for tensor in (query, keys, values, blocks))
    ):
        return None
    out = torch.empty_like(query)
    segments = PrefillSegments([start], [num_rows], [blocks])
    segments.place(keys.shape[2], width)
    shapes = tiles.full_shapes()
    block = arguments.prefill_attention(query, keys, values, segments.table, out, shapes, scaling)
    function.run(block, num_rows, ENOUGH_NS)
    return out


class PrefillSegments:
    """Tokens of several sequences, one sequence after the other, as the prefill kernel wants to be told."""

    def __init__(self, starts: Items[int], lengths: Items[int], tables: Items[Tensor], first_row: int = 0) -> None:
        """For each sequence the position of the first token, the number of tokens, the block table (m,) int32.

        `first_row`: of the queries and the result; those before it are left alone.
        """
        words, self._bytes = arguments.prefill_segments(starts, lengths, tables, first_row)
        self.table = torch.tensor(words)  # int64
        self._tables = tables
        self._memory: Tensor | None = None

    def place(self, num_kv_heads: int, width: int) -> None:
        """Get the memory in which the kernel lays out values, `width` of each KV head."""
        memory = torch.empty(self._bytes * num_kv_heads * width + 64, dtype=torch.int8)
        self._memory = memory[-memory.data_ptr() % 64 :]
        self.table[0] = self._memory.data_ptr()


def _attention_tensors_fit(query: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, lengths: Tensor) -> bool:
    return (
        query.is_cpu
        and keys.dtype is values.dtype
        and block_table.dtype is lengths.dtype is torch.int32
        and block_table.stride(1) == 1
        and query.is_contiguous()
        and keys.is_contiguous()
        and values.is_contiguous()
        and lengths.is_contiguous()
    )


def _kernel(name: str, *dtypes: torch.dtype) -> Kernel | None:
    forms = [_IS_BF16.get(dtype) for dtype in dtypes]
    return None if None in forms else kernel(name, *map(bool, forms))
