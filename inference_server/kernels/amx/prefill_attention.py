"""The kernel of prefill attention on AMX: consecutive tokens of several sequences attend over their blocks of keys and values.

First the threads copy the values into tiles. Then an item of work is 32 queries of one head, with an online softmax: scores
of STEP keys, their weights, and the weighted values. Everything is computed transposed, one query in each lane of a vector:
keys are tiles as they are stored in the cache, and nothing is summed or compared across lanes. The steps begin at the
sequence's first key, so a token's result does not depend on the division of its prompt into chunks.

Scores are (keys, 32 queries) float32, weights bfloat16, outputs (head_dim, 32 queries) float32.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import count_done, wait_until_done
from inference_server.kernels.amx.linear_int8 import W, X, int64_constant
from inference_server.kernels.simd.decode_attention import LOWEST
from inference_server.kernels.simd.elements import load, store, store_bf16
from inference_server.kernels.simd.vectors import (
    LANES,
    add,
    argument,
    constant,
    div,
    helper,
    intrinsic_of,
    lanes_max,
    load_float32,
    load_int32,
    load_int64,
    maximum,
    moved,
    mul,
    multiply_add,
    pointer,
    real_argument,
    splat,
    splatted,
    stack,
    store_float32,
    sub,
    take_next,
    vector,
)

QUERIES = 32  # columns of two tiles
KEYS = 32  # keys of a piece, whose values are packed together; a block holds whole pieces
STEP = 128  # keys between two updates of the softmax
SEGMENTS, SEGMENT = 32, 48  # bytes before the table's segments, and bytes of each
_TILE = 1024  # bytes of a tile
_ROW = QUERIES * 4  # bytes of a row of scores or outputs
# The reference of the softmax follows the largest score only when that exceeds it by more than this. Weights then reach
# e**8, which float32 holds easily, and nearly all steps rescale nothing (an idea of FlashAttention-4).
_MAX_RISE = 8.0
_int64, _int32 = ir.IntType(64), ir.IntType(32)
_ints, _shorts, _floats = (
    ir.VectorType(_int32, 16),
    ir.VectorType(ir.IntType(16), 16),
    ir.VectorType(ir.FloatType(), 16),
)


def _ints_of(value: int) -> Any:
    """Return 16 times the same int32."""
    return ir.Constant(_ints, [value] * 16)


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
def _transpose(builder: Any, source: Any, stride: Any, target: Any) -> None:
    """Store the transpose of 16 rows of 16 times 4 bytes. The rows of the source are `stride` bytes apart."""
    places = [moved(builder, source, (stride, row)) for row in range(16)]
    rows = [builder.load(pointer(builder, place, _ints), align=2) for place in places]
    _store_tile(builder, target, _transposed(builder, rows))


@intrinsic_of(types.void, *[types.int64] * 4)
def _transpose_values(builder: Any, source: Any, stride: Any, count: Any, target: Any) -> None:
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
        pairs.append(builder.or_(halves[0], builder.shl(halves[1], _ints_of(16))))
    _store_tile(builder, target, _transposed(builder, pairs))


@intrinsic_of(types.void, *[types.int64] * 5)
def _multiply_keys(builder: Any, keys: Any, stride: Any, queries: Any, width: Any, scores: Any) -> None:
    """Multiply 32 keys, `stride` bytes apart, by 32 queries. Stores scores, (32 keys, 32 queries) float32."""
    steps = builder.lshr(width, int64_constant(5))
    for tile in range(4):
        amx.zero(builder, tile)
    with cgutils.for_range(builder, steps) as loop:
        for b in range(2):
            amx.load(builder, X + b, moved(builder, keys, (loop.index, 64), (stride, 16 * b)), stride)
            amx.load(
                builder, W + b, moved(builder, queries, (loop.index, _TILE), (steps, _TILE * b)), int64_constant(64)
            )
        for b in range(4):
            amx.multiply_bf16(builder, b, X + b // 2, W + b % 2)
    for b in range(4):
        amx.store(builder, b, moved(builder, scores, 16 * _ROW * (b // 2) + 64 * (b % 2)), _ROW)


@intrinsic_of(types.void, *[types.int64] * 5)
def _accumulate_values(builder: Any, weights: Any, num_steps: Any, values: Any, width: Any, outputs: Any) -> None:
    """Add values times weights, 32 keys in a step, to outputs, (width, 32 queries) float32."""
    tiles = builder.lshr(width, int64_constant(4))
    with cgutils.for_range(builder, builder.lshr(width, int64_constant(5))) as columns:
        places = [
            moved(builder, outputs, (columns.index, 32 * _ROW), 16 * _ROW * (b // 2) + 64 * (b % 2)) for b in range(4)
        ]
        for b in range(4):
            amx.load(builder, b, places[b], int64_constant(_ROW))
        with cgutils.for_range(builder, num_steps) as loop:
            step = moved(builder, values, (builder.mul(loop.index, tiles), _TILE), (columns.index, 2 * _TILE))
            for b in range(2):
                amx.load(builder, X + b, moved(builder, step, _TILE * b), int64_constant(64))
                amx.load(
                    builder, W + b, moved(builder, weights, (loop.index, 2 * _TILE), _TILE * b), int64_constant(64)
                )
            for b in range(4):
                amx.multiply_bf16(builder, b, X + b // 2, W + b % 2)
        for b in range(4):
            amx.store(builder, b, places[b], _ROW)


@intrinsic_of(vector, vector)
def _exp(builder: Any, x: Any) -> Any:
    """Return e**x with a relative error of 4e-6, far below that of bfloat16, for x <= 80. e**0 is exactly 1.

    The method is that of vectors.exp. The polynomial is fitted at 4,000 Chebyshev nodes between -ln 2 / 2 and ln 2 / 2.
    """
    x = builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(-87.0), x)
    shifted = multiply_add(builder, x, constant(1.44269504088896341), constant(12582912.0))
    n = builder.fsub(shifted, constant(12582912.0))
    r = multiply_add(builder, n, constant(-0.69314718055994531), x)
    p = constant(0.04191753)
    for coefficient in (0.16792161, 0.49998869, 0.99996228, 1.0):
        p = multiply_add(builder, p, r, constant(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _ints), _ints_of(23))
    return builder.bitcast(builder.add(builder.bitcast(p, _ints), exponent), _floats)


@intrinsic_of(types.void, types.int64, vector, vector)
def _store_pair(builder: Any, address: Any, first: Any, second: Any) -> None:
    """Store two vectors as bfloat16, interleaved lane by lane. Ties are rounded up, as no weight is negative."""
    low, high = (builder.add(builder.bitcast(value, _ints), _ints_of(0x8000)) for value in (first, second))
    both = builder.or_(builder.lshr(low, _ints_of(16)), builder.and_(high, _ints_of(-65536)))
    builder.store(both, pointer(builder, address, _ints), align=64)


@intrinsic_of(vector, vector, types.int64, vector)
def _mask_later_keys(builder: Any, positions: Any, key: Any, scores: Any) -> Any:
    """Return a key's scores, with LOWEST in the lanes of queries whose `positions` are before the key."""
    place = splatted(builder, builder.sitofp(key, ir.FloatType()))
    return builder.select(builder.fcmp_ordered(">=", positions, place), scores, constant(float(LOWEST)))


@intrinsic_of(vector, types.int64)
def _positions_from(builder: Any, first: Any) -> Any:
    """Return first, first + 1, … as float32, which is exact up to 2**24."""
    lanes = ir.Constant(_floats, [float(lane) for lane in range(16)])
    return builder.fadd(splatted(builder, builder.sitofp(first, ir.FloatType())), lanes)


@intrinsic_of(vector, vector, vector)
def _new_reference(builder: Any, before: Any, largest: Any) -> Any:
    """Return each lane's reference of the softmax: `largest` if it exceeds `before` by more than _MAX_RISE."""
    limit = builder.fadd(before, constant(_MAX_RISE))
    return builder.select(builder.fcmp_ordered(">", largest, limit), largest, before)


@helper
def _rescale(before, largest, state, outputs, width):
    """Make the sums of weights and the outputs relative to the reference `largest` instead of `before`.

    Lanes where both are equal do not change.
    """
    factor = _exp(sub(before, largest))
    store_float32(state, largest)
    store_float32(state + 2 * 64, mul(load_float32(state + 2 * 64), factor))
    for index in range(width):
        place = outputs + index * _ROW
        store_float32(place, mul(load_float32(place), factor))


@helper
def _softmax_update(scores, weights, first_key, num_keys, scaling, position, state, outputs, width):
    """Turn the scores of 16 queries, the first at `position`, and keys from `first_key` on into weights.

    `state` is the reference of the softmax for each query, and 128 bytes after it the sums of weights, float32.
    """
    highest, factor = splat(LOWEST), splat(scaling)
    if first_key + num_keys - 1 > position:  # some keys come after some queries
        positions = _positions_from(position)
        for key in range(num_keys):
            place = scores + key * _ROW
            seen = _mask_later_keys(positions, first_key + key, load_float32(place))
            store_float32(place, seen)
            highest = maximum(seen, highest)
    else:
        for key in range(num_keys):
            highest = maximum(load_float32(scores + key * _ROW), highest)
    before = load_float32(state)
    largest = _new_reference(before, mul(highest, factor))
    if lanes_max(sub(largest, before)) > np.float32(0.0):
        _rescale(before, largest, state, outputs, width)
    first_sum = second_sum = splat(np.float32(0.0))
    for pair in range(num_keys // 2):
        place = scores + pair * 2 * _ROW
        first = _exp(sub(mul(load_float32(place), factor), largest))
        second = _exp(sub(mul(load_float32(place + _ROW), factor), largest))
        first_sum, second_sum = add(first_sum, first), add(second_sum, second)
        _store_pair(weights + pair // 16 * 2 * _TILE + pair % 16 * 64, first, second)
    store_float32(state + 2 * 64, add(load_float32(state + 2 * 64), add(first_sum, second_sum)))


@helper
def _row_offset(table, position, block_size, stride):
    """Return the offset of a position's row in the cache, in bytes."""
    block = position // block_size
    return (load_int32(table + block * 4) * block_size + position - block * block_size) * stride


@helper
def _find_segment(segments, index, column):
    """Return the address of the segment that contains the piece or group `index`.

    `column` is the offset, within a segment, of the number of its first piece or group.
    """
    last = segments + SEGMENTS + (load_int64(segments + 8) - 1) * SEGMENT
    while load_int64(last + column) > index:
        last -= SEGMENT
    return last


@helper
def _pack_values(block, segments, values, num_kv_heads, width, block_size, workspace):
    """Pack the values into width / 16 tiles for each KV head and 32 keys. Returns when all threads have finished."""
    stride, num_pieces = num_kv_heads * width * 2, load_int64(segments + 16)
    while True:
        item = take_next(block + 8)
        if item >= num_kv_heads * num_pieces:
            break
        head = item // num_pieces
        segment = _find_segment(segments, item - head * num_pieces, 32)
        first = (item - head * num_pieces - load_int64(segment + 32)) * KEYS
        source = values + _row_offset(load_int64(segment + 24), first, block_size, stride) + head * width * 2
        count = load_int64(segment + 16) + load_int64(segment + 8) - first
        for column in range(width // 16):
            _transpose_values(source + column * 32, stride, count, workspace + (item * (width // 16) + column) * _TILE)
        count_done(block + 16)
    wait_until_done(block + 16, num_kv_heads * num_pieces)


@helper
def _start_item(source, stride, count, rows, queries, outputs, state, width, is_bf16):
    """Store 32 queries as tiles, the last one repeated if there are fewer, and reset outputs and state."""
    size = 2 if is_bf16 else 4
    for row in range(QUERIES):
        query = source + min(row, count - 1) * stride
        for index in range(0, width, LANES):
            store_bf16(rows + (row * width + index) * 2, load(query + index * size, is_bf16))
    steps = width // 32
    for half in range(2):
        for step in range(steps):
            _transpose(rows + half * 16 * width * 2 + step * 64, width * 2, queries + (half * steps + step) * _TILE)
        store_float32(state + half * 64, splat(LOWEST))
        store_float32(state + (2 + half) * 64, splat(np.float32(0.0)))
        for index in range(width):
            store_float32(outputs + index * _ROW + half * 64, splat(np.float32(0.0)))


@helper
def _finish_item(target, stride, count, outputs, state, scratch, width, is_bf16):
    """Divide the outputs by the sums of weights, and write the result of `count` queries."""
    size = 2 if is_bf16 else 4
    for half in range(2):
        factor = div(splat(np.float32(1.0)), load_float32(state + (2 + half) * 64))
        for column in range(0, width, 16):
            for index in range(column, column + 16):
                place = outputs + index * _ROW + half * 64
                store_float32(place, mul(load_float32(place), factor))
            _transpose(outputs + column * _ROW + half * 64, _ROW, scratch)
            for row in range(min(16, count - half * 16)):
                place = target + (half * 16 + row) * stride + column * size
                store(place, load_float32(scratch + row * 64), is_bf16)


@helper
def _attend(
    queries, keys, stride, table, block_size, values, position, count, scaling, step_scratch, outputs, state, width
):
    """Attend with `count` queries, the first at `position`, over all keys up to their own.

    `step_scratch` holds scores and weights of STEP keys.
    """
    scores, weights = step_scratch, step_scratch + STEP * _ROW
    for first in range(0, position + count, STEP):
        num_pieces = (min(STEP, position + count - first) + KEYS - 1) // KEYS
        for piece in range(num_pieces):
            source = keys + _row_offset(table, first + piece * KEYS, block_size, stride)
            _multiply_keys(source, stride, queries, width, scores + piece * KEYS * _ROW)
        for half in range(2):
            _softmax_update(
                scores + half * 64,
                weights + half * _TILE,
                first,
                num_pieces * KEYS,
                scaling,
                position + half * 16,
                state + half * 64,
                outputs + half * 64,
                width,
            )
        _accumulate_values(weights, num_pieces, values + first // KEYS * (width // 16) * _TILE, width, outputs)


def make_attention(is_bf16: bool) -> Any:
    """Return the prefill attention kernel for keys and values in bfloat16.

    `is_bf16`: queries and result are bfloat16, else float32. The table of segments is that of arguments.prefill_segments.
    The kernel data are full tile shapes.
    """
    size = 2 if is_bf16 else 4

    def attention(block):
        query, keys, values = argument(block, 3), argument(block, 4), argument(block, 5)
        segments, out = argument(block, 6), argument(block, 7)
        num_heads, num_kv_heads, width = argument(block, 8), argument(block, 9), argument(block, 10)
        block_size, scaling, kernel_data = argument(block, 11), real_argument(block, 12), argument(block, 13)
        queries, outputs, state = stack(QUERIES * width * 2), stack(width * _ROW), stack(4 * 64)
        step_scratch, rows, scratch = stack(STEP * _ROW * 2), stack(QUERIES * width * 2), stack(_TILE)
        workspace, num_pieces, num_groups = load_int64(segments), load_int64(segments + 16), load_int64(segments + 24)
        piece_bytes, stride = KEYS * width * 2, num_heads * width * size
        _pack_values(block, segments, values, num_kv_heads, width, block_size, workspace)
        amx.configure(kernel_data)
        while True:
            item = take_next(block)
            if item >= num_heads * num_groups:
                break
            # The last tokens have the most keys. Starting with them lets all threads finish at similar times.
            group = num_groups - 1 - item // num_heads
            head = item % num_heads
            kv_head = head // (num_heads // num_kv_heads)
            segment = _find_segment(segments, group, 40)
            first = (group - load_int64(segment + 40)) * QUERIES
            count = min(QUERIES, load_int64(segment + 8) - first)
            place = ((load_int64(segment) + first) * num_heads + head) * width * size
            _start_item(query + place, stride, count, rows, queries, outputs, state, width, is_bf16)
            _attend(
                queries,
                keys + kv_head * width * 2,
                num_kv_heads * width * 2,
                load_int64(segment + 24),
                block_size,
                workspace + (kv_head * num_pieces + load_int64(segment + 32)) * piece_bytes,
                load_int64(segment + 16) + first,
                count,
                scaling,
                step_scratch,
                outputs,
                state,
                width,
            )
            _finish_item(out + place, stride, count, outputs, state, scratch, width, is_bf16)
        amx.release()

    return attention
