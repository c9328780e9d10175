"""The tile operations of prefill attention: transpositions into tiles, and the two matrix products.

Used by prefill_attention.py, which defines the shapes.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import int_vector
from inference_server.kernels.amx.linear_int8 import W, X, int64_constant
from inference_server.kernels.simd.vectors import intrinsic_of, moved, pointer, vector

QUERIES = 32  # queries of a work item: the columns of two tiles
TILE_BYTES = 1024
ROW_BYTES = QUERIES * 4  # bytes of a row of scores or outputs
_ints, _shorts = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.IntType(16), 16)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose 16 vectors of 16 lanes. Each of 4 rounds swaps half of the lanes within pairs of vectors."""
    stride = 8
    while stride:
        upper = [lane if not lane & stride else 16 + lane - stride for lane in range(16)]
        lower = [lane + stride if not lane & stride else 16 + lane for lane in range(16)]
        for first in (row for row in range(16) if not row & stride):
            a, b = rows[first], rows[first + stride]
            rows[first] = builder.shuffle_vector(a, b, ir.Constant(_ints, upper))
            rows[first + stride] = builder.shuffle_vector(a, b, ir.Constant(_ints, lower))
        stride //= 2
    return rows


def _store_tile(builder: Any, target: Any, rows: list[Any]) -> None:
    """Store 16 vectors as a tile of 16 rows of 64 bytes."""
    for index, row in enumerate(rows):
        builder.store(row, pointer(builder, moved(builder, target, 64 * index), _ints), align=64)


@intrinsic_of(types.void, types.int64, types.int64, types.int64)
def transpose(builder: Any, source: Any, stride: Any, target: Any) -> None:
    """Store the transpose of 16 rows of 16 times 4 bytes. The rows of the source are `stride` bytes apart."""
    places = [moved(builder, source, (stride, row)) for row in range(16)]
    rows = [builder.load(pointer(builder, place, _ints), align=2) for place in places]
    _store_tile(builder, target, _transposed(builder, rows))


@intrinsic_of(types.void, *[types.int64] * 4)
def transpose_values(builder: Any, source: Any, stride: Any, count: Any, target: Any) -> None:
    """Store 16 values of each of 32 keys as a tile of (16 values, 16 pairs of keys, 2 keys) bfloat16.

    Keys from `count` on are zeros.
    """
    pairs = []
    for pair in range(16):
        halves = []
        for key in (2 * pair, 2 * pair + 1):
            values = builder.load(pointer(builder, moved(builder, source, (stride, key)), _shorts), align=2)
            exists = builder.icmp_signed(">", count, int64_constant(key))
            zeros = ir.Constant(_shorts, [0] * 16)
            halves.append(builder.zext(builder.select(exists, values, zeros), _ints))
        pairs.append(builder.or_(halves[0], builder.shl(halves[1], int_vector(16))))
    _store_tile(builder, target, _transposed(builder, pairs))


@intrinsic_of(types.void, *[types.int64] * 5)
def multiply_keys(builder: Any, keys: Any, stride: Any, queries: Any, width: Any, scores: Any) -> None:
    """Multiply 32 keys, `stride` bytes apart, by 32 queries. Stores scores, (32 keys, 32 queries) float32."""
    steps = builder.lshr(width, int64_constant(5))
    for tile in range(4):
        amx.zero(builder, tile)
    with cgutils.for_range(builder, steps) as loop:
        for b in range(2):
            amx.load(builder, X + b, moved(builder, keys, (loop.index, 64), (stride, 16 * b)), stride)
            amx.load(
                builder,
                W + b,
                moved(builder, queries, (loop.index, TILE_BYTES), (steps, TILE_BYTES * b)),
                int64_constant(64),
            )
        for b in range(4):
            amx.multiply_bf16(builder, b, X + b // 2, W + b % 2)
    for b in range(4):
        amx.store(builder, b, moved(builder, scores, 16 * ROW_BYTES * (b // 2) + 64 * (b % 2)), ROW_BYTES)


@intrinsic_of(types.void, *[types.int64] * 5)
def accumulate_values(builder: Any, weights: Any, num_steps: Any, values: Any, width: Any, outputs: Any) -> None:
    """Add values times weights, 32 keys in a step, to outputs, (width, 32 queries) float32."""
    tiles = builder.lshr(width, int64_constant(4))
    with cgutils.for_range(builder, builder.lshr(width, int64_constant(5))) as columns:
        places = [
            moved(builder, outputs, (columns.index, 32 * ROW_BYTES), 16 * ROW_BYTES * (b // 2) + 64 * (b % 2))
            for b in range(4)
        ]
        for b in range(4):
            amx.load(builder, b, places[b], int64_constant(ROW_BYTES))
        with cgutils.for_range(builder, num_steps) as loop:
            step = moved(builder, values, (builder.mul(loop.index, tiles), TILE_BYTES), (columns.index, 2 * TILE_BYTES))
            for b in range(2):
                amx.load(builder, X + b, moved(builder, step, TILE_BYTES * b), int64_constant(64))
                amx.load(
                    builder,
                    W + b,
                    moved(builder, weights, (loop.index, 2 * TILE_BYTES), TILE_BYTES * b),
                    int64_constant(64),
                )
            for b in range(4):
                amx.multiply_bf16(builder, b, X + b // 2, W + b % 2)
        for b in range(4):
            amx.store(builder, b, places[b], ROW_BYTES)


@intrinsic_of(types.void, types.int64, vector, vector)
def store_pair(builder: Any, address: Any, first: Any, second: Any) -> None:
    """Store two vectors as bfloat16, interleaved lane by lane. Ties are rounded up, as no weight is negative."""
    low, high = (builder.add(builder.bitcast(value, _ints), int_vector(0x8000)) for value in (first, second))
    both = builder.or_(builder.lshr(low, int_vector(16)), builder.and_(high, int_vector(-65536)))
    builder.store(both, pointer(builder, address, _ints), align=64)
