"""Builds the argument blocks of the kernels: 24 int64 words, as bytes. The first three are counters, initially 0.

Tensors are passed by address. The caller keeps them alive and has checked their shapes, dtypes and strides. X_ROWS is the
index of the word with the number of rows in the block of kernel X. Kernel and Program set words 21 and 22, which
emit/block_words.py describes. Word 23 counts the threads inside the kernel (program_runner.py).
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from struct import Struct

import torch
from torch import Tensor

BLOCK_BYTES = 192  # enough for every kernel's arguments, in whole cache lines
_NO_WINDOW = 1 << 40  # a sliding window longer than any sequence


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The RMS norms that are applied to query and key heads before the rotation."""

    query: Tensor  # (head_dim,) weights, in the dtype of the queries
    key: Tensor  # (head_dim,)
    eps: float


def _layout(arguments: str) -> Struct:
    """Return the format of a block with these arguments (q: int64, d: double), padded to BLOCK_BYTES."""
    words = f"3q{arguments}"
    return Struct(f"{words}{BLOCK_BYTES - Struct(words).size}x")


# The number formats of linear/stored.py, which is slow to import.
STORED_FORMATS = ("q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k")
# The number formats of linear/stored_int4.py, whose codes are kept as int4.
STORED_INT4_FORMATS = ("q4_0", "q4_1", "q4_k")
RMS_NORM_ROWS, ADD_RMS_NORM_ROWS, SILU_MUL_ROWS, ROPE_ROWS, ATTENTION_ROWS, LINEAR_ROWS, LORA_ROWS = (
    6,
    7,
    5,
    10,
    9,
    8,
    7,
)

_RMS_NORM = _layout("5qd")
_ADD_RMS_NORM = _layout("6q2d")
_SILU_MUL = _layout("4q")
_ROPE = _layout("13qd")
_ATTENTION = _layout("14q2dq")
_PREFILL = _layout("9qdq")
_LINEAR = _layout("9q")
_LORA = _layout("12q")
_STORED = _layout("5q")


def rms_norm(x: Tensor, weight: Tensor, out: Tensor, eps: float) -> bytes:
    """Return the argument block of `rms_norm`: x and out (rows, width), weight (width,)."""
    num_rows, width = x.shape
    return _RMS_NORM.pack(0, 0, 0, x.data_ptr(), weight.data_ptr(), out.data_ptr(), num_rows, width, eps)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, out: Tensor, eps: float, factor: float = 1.0) -> bytes:
    """Return the argument block of `add_rms_norm`: x, delta, out (rows, width), weight (width,). Adds factor * delta to x."""
    num_rows, width = x.shape
    addresses = (x.data_ptr(), delta.data_ptr(), weight.data_ptr(), out.data_ptr())
    return _ADD_RMS_NORM.pack(0, 0, 0, *addresses, num_rows, width, eps, factor)


def silu_mul(gate_up: Tensor, out: Tensor) -> bytes:
    """Return the argument block of `silu_mul`: gate_up (rows, 2 * width), out (rows, width)."""
    num_rows, width = out.shape
    return _SILU_MUL.pack(0, 0, 0, gate_up.data_ptr(), out.data_ptr(), num_rows, width)


def rope_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    query: Tensor,
    norms: HeadNorms | None = None,
) -> bytes:
    """Return the argument block of `rope_and_write`, with ops.rope_and_write's shapes. `query` receives the result.

    With `norms`, it is the block of `norm_rope_and_write`, which overwrites the queries and keys in `qkv`.
    """
    num_rows, num_heads, width = query.shape
    tensors = (qkv, cos, sin, query, keys, values, rows)
    addresses = [tensor.data_ptr() for tensor in tensors]
    sizes = (num_rows, num_heads, keys.shape[-2], width)
    normed = (0, 0, 0.0) if norms is None else (norms.query.data_ptr(), norms.key.data_ptr(), norms.eps)
    return _ROPE.pack(0, 0, 0, *addresses, *sizes, *normed)


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
    sinks: Tensor | None = None,
) -> bytes:
    """Return the argument block of `decode_attention`, with ops.paged_decode_attention's shapes.

    `out`: receives the result.
    """
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
        _NO_WINDOW if sliding_window is None else sliding_window,
        scaling,
        softcap or 0.0,
        0 if sinks is None else sinks.data_ptr(),
    )


def prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Tensor,
    out: Tensor,
    scaling: float,
    sinks: Tensor | None = None,
) -> bytes:
    """Return the argument block of a prefill attention kernel.

    Args:
        query: (rows, num_heads, head_dim).
        keys: (num_blocks, block_size, num_kv_heads, head_dim).
        values: The same shape and dtype as `keys`.
        segments: The words of `prefill_segments`, int64.
        out: The result, (rows, num_heads, head_dim).
        scaling: The factor on the scores.
        sinks: (num_heads,) float32, or None.
    """
    _, num_heads, width = query.shape
    _, block_size, num_kv_heads, _ = keys.shape
    addresses = [tensor.data_ptr() for tensor in (query, keys, values, segments, out)]
    sizes = (num_heads, num_kv_heads, width, block_size)
    return _PREFILL.pack(0, 0, 0, *addresses, *sizes, scaling, 0 if sinks is None else sinks.data_ptr())


def segment_words(num_segments: int) -> int:
    """Return the length of the table of `num_segments` segments, in int64 words."""
    return 4 + 6 * num_segments


def prefill_segments(
    starts: Items[int], lengths: Items[int], tables: Items[Tensor], first_row: int
) -> tuple[list[int], int]:
    """Build the table of segments of a prefill attention kernel. A segment is the consecutive tokens of one sequence.

    Args:
        starts: The position of each segment's first token.
        lengths: The number of tokens of each segment.
        tables: The block table of each segment's sequence, (num_blocks,) int32.
        first_row: The row of the queries where the first segment begins; the others follow it.

    Returns:
        The words of the table, and the bytes of workspace divided by num_kv_heads * head_dim.

        The table begins with a header of 4 words: the address of the workspace, and the numbers of segments, pieces and
        groups. The address is 0 until the caller sets it. A piece is 32 keys, and a group is 32 queries. The entry of
        each segment follows: its first row, number of rows, first position, address of its block table, first piece and
        first group.
    """
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
    num_outputs: int,
    workspace: int,
) -> bytes:
    """Return the argument block of a linear kernel.

    Args:
        weights: Address of the packed weights.
        scales: Address of the scales of int8 weights; 0 for other weights.
        x: Address of the activations, (num_rows, width).
        out: Address of the result.
        bias: Address of the bias, (num_outputs,) float32.
        num_rows: Rows of activations.
        width: Number of the layer's inputs.
        num_outputs: Number of the layer's outputs, a multiple of 32.
        workspace: Address of memory for the converted activations.
    """
    sizes = (num_rows, width, num_outputs)
    return _LINEAR.pack(0, 0, 0, weights, scales, x, out, bias, *sizes, workspace)


def lora(
    x: Tensor, out: Tensor, adapters: Tensor, table: Tensor, parts: Tensor, scratch: Tensor, gated: Tensor | None
) -> bytes:
    """Return the argument block of `lora`, or of `lora-gated` if there is a gated result.

    Args:
        x: Activations, (rows, inputs).
        out: Result of the layer, (rows, outputs). Updated in place.
        adapters: The adapter of each row, from 1; 0 for none. (rows,) int32.
        table: Matrices, (adapters, parts, 4) int64: see kernels/linear/lora.py.
        parts: First panel and number of panels of each part, (parts, 2) int64.
        scratch: (rows, parts * the largest rank) float32, or wider.
        gated: Memory for the gated result, (rows, outputs / 2); None if the layer is not gated.
    """
    num_parts = len(parts)
    tensors = [each.data_ptr() for each in (x, out, adapters, table)]
    sizes = (x.shape[0], x.shape[1], out.shape[1], num_parts)
    rest = (parts.data_ptr(), scratch.data_ptr(), scratch.shape[1] // num_parts)
    return _LORA.pack(0, 0, 0, *tensors, *sizes, *rest, 0 if gated is None else gated.data_ptr())


def stored(rows: Tensor, out: Tensor, scales: Tensor | None, num_items: int, num_groups: int) -> bytes:
    """Return the argument block of the kernels of linear/stored.py.

    Args:
        rows: int64, the addresses of the stored rows, one for each output; 0 for none.
        out: The panels or rows to write.
        scales: Memory for the scales, one float32 for each output; None for kernels that write no scales.
        num_items: Number of panels, or of rows.
        num_groups: Groups of 32 weights in a row.
    """
    addresses = (rows.data_ptr(), out.data_ptr(), 0 if scales is None else scales.data_ptr())
    return _STORED.pack(0, 0, 0, *addresses, num_items, num_groups)
