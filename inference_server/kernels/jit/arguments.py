"""What each kernel is called with: its block of int64 as bytes, three counters (zeros) before the arguments.

Tensors are told by their addresses: whoever runs the kernel keeps them alive, and has checked shapes, dtypes and strides.
X_ROWS is where the block of kernel X tells the number of rows.
"""

from collections.abc import Sequence as Items
from struct import Struct

import torch
from torch import Tensor

BLOCK_BYTES = 192  # room for every kernel's arguments, whole cache lines
_EVERYTHING = 1 << 40


def _layout(arguments: str) -> Struct:
    form = f"3q{arguments}"
    return Struct(f"{form}{BLOCK_BYTES - Struct(form).size}x")


RMS_NORM_ROWS, ADD_RMS_NORM_ROWS, SILU_MUL_ROWS, ROPE_ROWS, ATTENTION_ROWS, LINEAR_ROWS = 6, 7, 5, 10, 9, 8
LINEAR_SHAPES = 12

_RMS_NORM = _layout("5qd")
_ADD_RMS_NORM = _layout("6qd")
_SILU_MUL = _layout("4q")
_ROPE = _layout("11q")
_ATTENTION = _layout("14q2d")
_PREFILL = _layout("9qdq")
_LINEAR = _layout("10q")


def rms_norm(x: Tensor, weight: Tensor, out: Tensor, eps: float) -> bytes:
    num_rows, width = x.shape
    return _RMS_NORM.pack(0, 0, 0, x.data_ptr(), weight.data_ptr(), out.data_ptr(), num_rows, width, eps)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, out: Tensor, eps: float) -> bytes:
    num_rows, width = x.shape
    addresses = (x.data_ptr(), delta.data_ptr(), weight.data_ptr(), out.data_ptr())
    return _ADD_RMS_NORM.pack(0, 0, 0, *addresses, num_rows, width, eps)


def silu_mul(gate_up: Tensor, out: Tensor) -> bytes:
    num_rows, width = out.shape
    return _SILU_MUL.pack(0, 0, 0, gate_up.data_ptr(), out.data_ptr(), num_rows, width)


def rope_and_write(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, rows: Tensor, query: Tensor
) -> bytes:
    num_rows, num_heads, width = query.shape
    tensors = (qkv, cos, sin, query, keys, values, rows)
    addresses = [tensor.data_ptr() for tensor in tensors]
    return _ROPE.pack(0, 0, 0, *addresses, num_rows, num_heads, keys.shape[-2], width)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    out: Tensor,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> bytes:
    num_seqs, num_heads, width = query.shape
    _, block_size, num_kv_heads, value_width = values.shape
    return _ATTENTION.pack(
        0,
        0,
        0,
        *(tensor.data_ptr() for tensor in (query, keys, values, block_table, lengths, out)),
        num_seqs,
        num_kv_heads,
        num_heads // num_kv_heads,
        width,
        value_width,
        block_size,
        block_table.stride(0),
        _EVERYTHING if sliding_window is None else sliding_window,
        scaling,
        softcap or 0.0,
    )


def prefill_attention(
    query: Tensor, keys: Tensor, values: Tensor, segments: Tensor, out: Tensor, shapes: Tensor, scaling: float
) -> bytes:
    """`segments`: of prefill_segments."""
    _, num_heads, width = query.shape
    _, block_size, num_kv_heads, _ = keys.shape
    addresses = [tensor.data_ptr() for tensor in (query, keys, values, segments, out)]
    sizes = (num_heads, num_kv_heads, width, block_size)
    return _PREFILL.pack(0, 0, 0, *addresses, *sizes, scaling, shapes.data_ptr())


def segment_words(num_segments: int) -> int:
    """Of a table for so many."""
    return 4 + 6 * num_segments


def prefill_segments(
    starts: Items[int], lengths: Items[int], tables: Items[Tensor], first_row: int
) -> tuple[list[int], int]:
    """Of several sequences' tokens, one sequence after the other, from `first_row` of the queries on: the words of the
    table, the first of which is to become the address of memory, and how many bytes of memory a kernel wants for each KV
    head and value of a head."""
    entries: list[int] = []
    row, piece, group = first_row, 0, 0
    for start, length, table in zip(starts, lengths, tables, strict=True):
        entries += [row, length, start, table.data_ptr(), piece, group]
        row += length
        piece += -(-(start + length) // 32)
        group += -(-length // 32)
    return [0, len(starts), piece, group, *entries], piece * 32 * torch.bfloat16.itemsize


def linear(
    weights: int,
    scales: int,
    x: int,
    out: int,
    bias: int,
    num_rows: int,
    width: int,
    outputs: int,
    memory: int,
    shapes: int,
) -> bytes:
    """Addresses and sizes; `memory` for what the kernel makes of its activations, `shapes` of the tile registers."""
    return _LINEAR.pack(0, 0, 0, weights, scales, x, out, bias, num_rows, width, outputs, memory, shapes)
