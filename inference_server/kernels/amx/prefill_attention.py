"""Attention of consecutive tokens of several sequences over their blocks of keys and values, on the tile registers of AMX.

First values are laid out as tiles, shared out among the threads. Then an item of work is 32 queries of one head: scores of
STEP keys at a time, the softmax kept up while they pass, values times weights. Everything is computed transposed, a query
in each lane of a vector: keys are tiles as they lie in the cache, and nothing is summed or compared across lanes. The steps
begin at the sequence's first key, so a token's result does not depend on how its prompt was cut into chunks.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import count_done, wait_until_done
from inference_server.kernels.amx.linear_int8 import W, X, number
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
KEYS = 32  # whose values are laid out together; a block holds a multiple of it
STEP = 128  # keys between two looks at the largest score
SEGMENTS, SEGMENT = 32, 48  # bytes before the segments, and of each
_TILE = 1024  # bytes
_ROW = QUERIES * 4  # of scores and outputs
# How far the largest score may rise before what was summed up is brought down to it: e**8 is no danger to float32, and
# nearly all steps then change nothing (an idea of FlashAttention-4).
_RISE = 8.0
_int64, _int32 = ir.IntType(64), ir.IntType(32)
_ints, _shorts, _floats = (
    ir.VectorType(_int32, 16),
    ir.VectorType(ir.IntType(16), 16),
    ir.VectorType(ir.FloatType(), 16),
)


def _ints_of(value: int) -> Any:
    return ir.Constant(_ints, [value] * 16)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 16: each round swaps, within pairs of vectors, the lanes that lie on the wrong side."""
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
    for index, row in enumerate(rows):
        builder.store(row, pointer(builder, moved(builder, target, 64 * index), _ints), align=64)


@intrinsic_of(types.void, types.int64, types.int64, types.int64)
def _turn(builder: Any, source: Any, stride: Any, target: Any) -> None:
    """16 rows of 16 times 4 bytes, transposed. `stride`: bytes from one row of the source to the next."""
    places = [moved(builder, source, (stride, row)) for row in range(16)]
    rows = [builder.load(pointer(builder, place, _ints), align=2) for place in places]
    _store_tile(builder, target, _transposed(builder, rows))


@intrinsic_of(types.void, *[types.int64] * 4)
def _turn_values(builder: Any, source: Any, stride: Any, count: Any, target: Any) -> None:
    """16 values each of 32 keys as a tile: a row for each value. Keys from `count` on are zeros."""
    pairs = []
    for pair in range(16):
        halves = []
        for key in (2 * pair, 2 * pair + 1):
            values = builder.load(pointer(builder, moved(builder, source, (stride, key)), _shorts), align=2)
            is_there = builder.icmp_signed(">", count, number(key))
            nothing = ir.Constant(_shorts, [0] * 16)
            halves.append(builder.zext(builder.select(is_there, values, nothing), _ints))
        pairs.append(builder.or_(halves[0], builder.shl(halves[1], _ints_of(16))))
    _store_tile(builder, target, _transposed(builder, pairs))


@intrinsic_of(types.void, *[types.int64] * 5)
def _score(builder: Any, keys: Any, stride: Any, queries: Any, width: Any, scores: Any) -> None:
    """32 keys, `stride` bytes apart, times 32 queries: scores (32 keys, 32 queries) float32."""
    steps = builder.lshr(width, number(5))
    for tile in range(4):
        amx.zero(builder, tile)
    with cgutils.for_range(builder, steps) as loop:
        for b in range(2):
            amx.load(builder, X + b, moved(builder, keys, (loop.index, 64), (stride, 16 * b)), stride)
            amx.load(builder, W + b, moved(builder, queries, (loop.index, _TILE), (steps, _TILE * b)), number(64))
        for b in range(4):
            amx.multiply_bf16(builder, b, X + b // 2, W + b % 2)
    for b in range(4):
        amx.store(builder, b, moved(builder, scores, 16 * _ROW * (b // 2) + 64 * (b % 2)), _ROW)


@intrinsic_of(types.void, *[types.int64] * 5)
def _weigh(builder: Any, weights: Any, num_steps: Any, values: Any, width: Any, outputs: Any) -> None:
    """Adds values times weights, 32 keys in a step, to outputs (width, 32 queries) float32."""
    tiles = builder.lshr(width, number(4))
    with cgutils.for_range(builder, builder.lshr(width, number(5))) as columns:
        places = [
            moved(builder, outputs, (columns.index, 32 * _ROW), 16 * _ROW * (b // 2) + 64 * (b % 2)) for b in range(4)
        ]
        for b in range(4):
            amx.load(builder, b, places[b], number(_ROW))
        with cgutils.for_range(builder, num_steps) as loop:
            step = moved(builder, values, (builder.mul(loop.index, tiles), _TILE), (columns.index, 2 * _TILE))
            for b in range(2):
                amx.load(builder, X + b, moved(builder, step, _TILE * b), number(64))
                amx.load(builder, W + b, moved(builder, weights, (loop.index, 2 * _TILE), _TILE * b), number(64))
            for b in range(4):
                amx.multiply_bf16(builder, b, X + b // 2, W + b % 2)
        for b in range(4):
            amx.store(builder, b, places[b], _ROW)


@intrinsic_of(vector, vector)
def _exp(builder: Any, x: Any) -> Any:
    """e**x within 4e-6 of itself, which bfloat16 does not see, for x <= 80; 1 for 0. As vectors.exp otherwise.

    The polynomial is fitted at 4,000 Chebyshev nodes between -ln 2 / 2 and ln 2 / 2.
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
    """As bfloat16, to nearest, side by side in each lane: no weight is negative, so ties may go up."""
    low, high = (builder.add(builder.bitcast(value, _ints), _ints_of(0x8000)) for value in (first, second))
    both = builder.or_(builder.lshr(low, _ints_of(16)), builder.and_(high, _ints_of(-65536)))
    builder.store(both, pointer(builder, address, _ints), align=64)


@intrinsic_of(vector, vector, types.int64, vector)
def _if_seen(builder: Any, positions: Any, key: Any, scores: Any) -> Any:
    """The scores of a key in the lanes whose positions it does not lie beyond, the lowest in the others."""
    place = splatted(builder, builder.sitofp(key, ir.FloatType()))
    return builder.select(builder.fcmp_ordered(">=", positions, place), scores, constant(float(LOWEST)))


@intrinsic_of(vector, types.int64)
def _positions_from(builder: Any, first: Any) -> Any:
    """first, first + 1, … as float32, which holds them exactly up to 2**24."""
    lanes = ir.Constant(_floats, [float(lane) for lane in range(16)])
    return builder.fadd(splatted(builder, builder.sitofp(first, ir.FloatType())), lanes)


@intrinsic_of(vector, vector, vector)
def _raised(builder: Any, before: Any, largest: Any) -> Any:
    """Each lane's largest score, where it is much larger than before."""
    limit = builder.fadd(before, constant(_RISE))
    return builder.select(builder.fcmp_ordered(">", largest, limit), largest, before)


@helper
def _bring_down(before, largest, state, outputs, width):
    """What is summed up, relative to the scores `largest` instead of `before`: nothing changes where they are equal."""
    shrink = _exp(sub(before, largest))
    store_float32(state, largest)
    store_float32(state + 2 * 64, mul(load_float32(state + 2 * 64), shrink))
    for index in range(width):
        place = outputs + index * _ROW
        store_float32(place, mul(load_float32(place), shrink))


@helper
def _soften(scores, weights, first_key, num_keys, scaling, position, state, outputs, width):
    """The scores of 16 queries, the first at `position`, and keys from `first_key` on, become weights.

    `state`: the scores that weights are relative to, and 128 bytes further the sums of weights.
    """
    highest, factor = splat(LOWEST), splat(scaling)
    if first_key + num_keys - 1 > position:  # some keys lie beyond some queries
        positions = _positions_from(position)
        for key in range(num_keys):
            place = scores + key * _ROW
            seen = _if_seen(positions, first_key + key, load_float32(place))
            store_float32(place, seen)
            highest = maximum(seen, highest)
    else:
        for key in range(num_keys):
            highest = maximum(load_float32(scores + key * _ROW), highest)
    before = load_float32(state)
    largest = _raised(before, mul(highest, factor))
    if lanes_max(sub(largest, before)) > np.float32(0.0):
        _bring_down(before, largest, state, outputs, width)
    first_sum = second_sum = splat(np.float32(0.0))
    for pair in range(num_keys // 2):
        place = scores + pair * 2 * _ROW
        first = _exp(sub(mul(load_float32(place), factor), largest))
        second = _exp(sub(mul(load_float32(place + _ROW), factor), largest))
        first_sum, second_sum = add(first_sum, first), add(second_sum, second)
        _store_pair(weights + pair // 16 * 2 * _TILE + pair % 16 * 64, first, second)
    store_float32(state + 2 * 64, add(load_float32(state + 2 * 64), add(first_sum, second_sum)))


@helper
def _row_of(table, position, block_size, stride):
    """Where a position lies, in bytes from the first row."""
    block = position // block_size
    return (load_int32(table + block * 4) * block_size + position - block * block_size) * stride


@helper
def _segment_of(segments, index, column):
    """The address of the segment in which the piece or group `index` lies; `column` tells where each one's begin."""
    last = segments + SEGMENTS + (load_int64(segments + 8) - 1) * SEGMENT
    while load_int64(last + column) > index:
        last -= SEGMENT
    return last


@helper
def _lay_out_values(block, segments, values, num_kv_heads, width, block_size, memory):
    """For each KV head and 32 keys, width / 16 tiles. Returns when all are there."""
    stride, num_pieces = num_kv_heads * width * 2, load_int64(segments + 16)
    while True:
        item = take_next(block + 8)
        if item >= num_kv_heads * num_pieces:
            break
        head = item // num_pieces
        segment = _segment_of(segments, item - head * num_pieces, 32)
        first = (item - head * num_pieces - load_int64(segment + 32)) * KEYS
        source = values + _row_of(load_int64(segment + 24), first, block_size, stride) + head * width * 2
        count = load_int64(segment + 16) + load_int64(segment + 8) - first
        for column in range(width // 16):
            _turn_values(source + column * 32, stride, count, memory + (item * (width // 16) + column) * _TILE)
        count_done(block + 16)
    wait_until_done(block + 16, num_kv_heads * num_pieces)


@helper
def _begin(source, stride, count, rows, queries, outputs, state, width, is_bf16):
    """32 queries as tiles, the last one repeated where there are fewer; nothing weighed yet."""
    size = 2 if is_bf16 else 4
    for row in range(QUERIES):
        query = source + min(row, count - 1) * stride
        for index in range(0, width, LANES):
            store_bf16(rows + (row * width + index) * 2, load(query + index * size, is_bf16))
    steps = width // 32
    for half in range(2):
        for step in range(steps):
            _turn(rows + half * 16 * width * 2 + step * 64, width * 2, queries + (half * steps + step) * _TILE)
        store_float32(state + half * 64, splat(LOWEST))
        store_float32(state + (2 + half) * 64, splat(np.float32(0.0)))
        for index in range(width):
            store_float32(outputs + index * _ROW + half * 64, splat(np.float32(0.0)))


@helper
def _end(target, stride, count, outputs, state, scratch, width, is_bf16):
    size = 2 if is_bf16 else 4
    for half in range(2):
        factor = div(splat(np.float32(1.0)), load_float32(state + (2 + half) * 64))
        for column in range(0, width, 16):
            for index in range(column, column + 16):
                place = outputs + index * _ROW + half * 64
                store_float32(place, mul(load_float32(place), factor))
            _turn(outputs + column * _ROW + half * 64, _ROW, scratch)
            for row in range(min(16, count - half * 16)):
                place = target + (half * 16 + row) * stride + column * size
                store(place, load_float32(scratch + row * 64), is_bf16)


@helper
def _attend(queries, keys, stride, table, block_size, values, position, count, scaling, room, outputs, state, width):
    """`count` queries, the first at `position`, over all keys up to themselves. `room`: for scores and weights."""
    scores, weights = room, room + STEP * _ROW
    for first in range(0, position + count, STEP):
        num_pieces = (min(STEP, position + count - first) + KEYS - 1) // KEYS
        for piece in range(num_pieces):
            source = keys + _row_of(table, first + piece * KEYS, block_size, stride)
            _score(source, stride, queries, width, scores + piece * KEYS * _ROW)
        for half in range(2):
            _soften(
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
        _weigh(weights, num_pieces, values + first // KEYS * (width // 16) * _TILE, width, outputs)


def make_attention(is_bf16: bool) -> Any:
    """`is_bf16`: the queries and the result. Keys and values are bfloat16.

    The table of segments: address of memory, segments, pieces of 32 keys in all, groups of 32 queries in all; then for
    each segment its first row, rows, first position, address of its block table (int32), first piece, first group.
    """
    size = 2 if is_bf16 else 4

    def attention(block):
        query, keys, values = argument(block, 3), argument(block, 4), argument(block, 5)
        segments, out = argument(block, 6), argument(block, 7)
        num_heads, num_kv_heads, width = argument(block, 8), argument(block, 9), argument(block, 10)
        block_size, scaling, shapes = argument(block, 11), real_argument(block, 12), argument(block, 13)
        queries, outputs, state = stack(QUERIES * width * 2), stack(width * _ROW), stack(4 * 64)
        room, rows, scratch = stack(STEP * _ROW * 2), stack(QUERIES * width * 2), stack(_TILE)
        memory, num_pieces, num_groups = load_int64(segments), load_int64(segments + 16), load_int64(segments + 24)
        piece_bytes, stride = KEYS * width * 2, num_heads * width * size
        _lay_out_values(block, segments, values, num_kv_heads, width, block_size, memory)
        amx.configure(shapes)
        while True:
            item = take_next(block)
            if item >= num_heads * num_groups:
                break
            # The last tokens have the most keys: begin with them, so that no thread is left with one at the end.
            group = num_groups - 1 - item // num_heads
            head = item % num_heads
            kv_head = head // (num_heads // num_kv_heads)
            segment = _segment_of(segments, group, 40)
            first = (group - load_int64(segment + 40)) * QUERIES
            count = min(QUERIES, load_int64(segment + 8) - first)
            place = ((load_int64(segment) + first) * num_heads + head) * width * size
            _begin(query + place, stride, count, rows, queries, outputs, state, width, is_bf16)
            _attend(
                queries,
                keys + kv_head * width * 2,
                num_kv_heads * width * 2,
                load_int64(segment + 24),
                block_size,
                memory + (kv_head * num_pieces + load_int64(segment + 32)) * piece_bytes,
                load_int64(segment + 16) + first,
                count,
                scaling,
                room,
                outputs,
                state,
                width,
            )
            _end(out + place, stride, count, outputs, state, scratch, width, is_bf16)
        amx.release()

    return attention
