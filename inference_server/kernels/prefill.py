"""Attention of consecutive tokens of one sequence over its blocks of keys and values, on the tile registers of AMX.

First keys and values are laid out as tiles, shared out among the threads. Then an item of work is 32 tokens of one head:
scores of STEP keys at a time, the softmax kept up while they pass (as in decode.py), weights times values. The steps begin
at the sequence's first key, so a token's result does not depend on how its prompt was cut into chunks.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from inference_server.kernels import amx
from inference_server.kernels.activations import count_done, wait_until_done
from inference_server.kernels.decode import LOWEST
from inference_server.kernels.elements import load, store, store_bf16
from inference_server.kernels.linear import W, X, number
from inference_server.kernels.vectors import (
    LANES,
    add,
    argument,
    constant,
    fma,
    helper,
    intrinsic_of,
    keep_first,
    lanes_max,
    lanes_sum,
    load_float32,
    load_int32,
    load_int64,
    load_scalar,
    maximum,
    moved,
    mul,
    multiply_add,
    pointer,
    real_argument,
    splat,
    stack,
    store_float32,
    store_int64,
    store_scalar,
    take_next,
    vector,
)

QUERIES = 32  # rows of two tiles
KEYS = 32  # laid out together
STEP = 128  # keys between two looks at the largest score
SEGMENTS, SEGMENT = 32, 48  # bytes before the segments, and of each
_TILE = 1024  # bytes
_int64, _int32 = ir.IntType(64), ir.IntType(32)
_ints, _shorts, _floats = (
    ir.VectorType(_int32, 16),
    ir.VectorType(ir.IntType(16), 16),
    ir.VectorType(ir.FloatType(), 16),
)


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


@intrinsic_of(types.void, types.int64, types.int64)
def _lay_out_keys(builder: Any, rows: Any, target: Any) -> None:
    """`rows`: 16 addresses of 32 values each. The tile: 16 pairs of values, for 16 keys."""
    addresses = [builder.load(pointer(builder, moved(builder, rows, 8 * key), _int64)) for key in range(16)]
    pairs = [builder.load(pointer(builder, address, _ints), align=2) for address in addresses]
    for row, values in enumerate(_transposed(builder, pairs)):
        builder.store(values, pointer(builder, moved(builder, target, 64 * row), _ints), align=64)


@intrinsic_of(types.void, types.int64, types.int64, types.int64)
def _lay_out_values(builder: Any, first: Any, second: Any, target: Any) -> None:
    """16 values each of two neighbouring keys, as one row of a tile."""
    low, high = (
        builder.zext(builder.load(pointer(builder, address, _shorts), align=2), _ints) for address in (first, second)
    )
    sixteen = ir.Constant(_ints, [16] * 16)
    builder.store(builder.or_(low, builder.shl(high, sixteen)), pointer(builder, target, _ints), align=64)


@intrinsic_of(types.void, types.int64, types.int64)
def _lay_out_one(builder: Any, first: Any, target: Any) -> None:
    """The same with zeros for the second key."""
    low = builder.zext(builder.load(pointer(builder, first, _shorts), align=2), _ints)
    builder.store(low, pointer(builder, target, _ints), align=64)


@intrinsic_of(types.void, *[types.int64] * 4)
def _score(builder: Any, queries: Any, width: Any, keys: Any, scores: Any) -> None:
    """32 queries times 32 keys, as scores (32, STEP) float32. `width`: of a query."""
    row_bytes, steps = builder.shl(width, number(1)), builder.lshr(width, number(5))
    for tile in range(4):
        amx.zero(builder, tile)
    with cgutils.for_range(builder, steps) as loop:
        for b in range(2):
            amx.load(builder, X + b, moved(builder, queries, (loop.index, 64), (row_bytes, 16 * b)), row_bytes)
            amx.load(builder, W + b, moved(builder, keys, (loop.index, _TILE), (steps, _TILE * b)), number(64))
        for b in range(4):
            amx.multiply_bf16(builder, b, X + b // 2, W + b % 2)
    for b in range(4):
        amx.store(builder, b, moved(builder, scores, 16 * STEP * 4 * (b // 2) + 64 * (b % 2)), STEP * 4)


@intrinsic_of(types.void, *[types.int64] * 5)
def _weigh(builder: Any, weights: Any, num_steps: Any, values: Any, width: Any, outputs: Any) -> None:
    """Adds weights (32, STEP) bfloat16 times values, 32 keys in a step, to outputs (32, width) float32."""
    row_bytes, tiles = builder.shl(width, number(2)), builder.lshr(width, number(4))
    with cgutils.for_range(builder, builder.lshr(width, number(5))) as columns:
        places = [
            moved(builder, outputs, (columns.index, 128), (row_bytes, 16 * (b // 2)), 64 * (b % 2)) for b in range(4)
        ]
        for b in range(4):
            amx.load(builder, b, places[b], row_bytes)
        with cgutils.for_range(builder, num_steps) as loop:
            step = moved(builder, values, (builder.mul(loop.index, tiles), _TILE), (columns.index, 2 * _TILE))
            for b in range(2):
                amx.load(builder, X + b, moved(builder, weights, (loop.index, 64), 16 * STEP * 2 * b), number(STEP * 2))
                amx.load(builder, W + b, moved(builder, step, _TILE * b), number(64))
            for b in range(4):
                amx.multiply_bf16(builder, b, X + b // 2, W + b % 2)
        for b in range(4):
            amx.store(builder, b, places[b], row_bytes)


@intrinsic_of(types.void, types.int64, vector)
def _store_weights(builder: Any, address: Any, value: Any) -> None:
    """As bfloat16, to nearest: no weight is negative, so ties may go up."""
    bits = builder.add(builder.bitcast(value, _ints), ir.Constant(_ints, [0x8000] * 16))
    shorts = builder.trunc(builder.lshr(bits, ir.Constant(_ints, [16] * 16)), _shorts)
    builder.store(shorts, pointer(builder, address, _shorts), align=2)


@helper
def _row_of(table, position, block_size, stride):
    """Where a position lies, in bytes from the first row."""
    block = position // block_size
    return (load_int32(table + block * 4) * block_size + position - block * block_size) * stride


@helper
def _lay_out(keys, values, table, start, num_keys, block_size, stride, width, rows, key_tiles, value_tiles):
    """32 keys and values from `start` on. Beyond the last key, keys repeat it and values are zeros."""
    for half in range(2):
        for index in range(16):
            position = min(start + 16 * half + index, num_keys - 1)
            store_int64(rows + index * 8, keys + _row_of(table, position, block_size, stride))
        for step in range(width // 32):
            _lay_out_keys(rows, key_tiles + (half * (width // 32) + step) * _TILE)
            for index in range(16):
                store_int64(rows + index * 8, load_int64(rows + index * 8) + 64)
    for pair in range(16):
        position = start + 2 * pair
        first = values + _row_of(table, min(position, num_keys - 1), block_size, stride)
        second = values + _row_of(table, min(position + 1, num_keys - 1), block_size, stride)
        for column in range(width // 16):
            target = value_tiles + column * _TILE + pair * 64
            if position + 1 < num_keys:
                _lay_out_values(first + column * 32, second + column * 32, target)
            elif position < num_keys:
                _lay_out_one(first + column * 32, target)
            else:
                store_float32(target, splat(np.float32(0.0)))


@intrinsic_of(vector, vector)
def _exp(builder: Any, x: Any) -> Any:
    """e**x for x <= 0 within 4e-6 of itself, which bfloat16 does not see; as vectors.exp otherwise.

    The polynomial is fitted at 4,000 Chebyshev nodes between -ln 2 / 2 and ln 2 / 2.
    """
    x = builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(-87.0), x)
    shifted = multiply_add(builder, x, constant(1.44269504088896341), constant(12582912.0))
    n = builder.fsub(shifted, constant(12582912.0))
    r = multiply_add(builder, n, constant(-0.69314718055994531), x)
    p = constant(0.04191753)
    for coefficient in (0.16792161, 0.49998869, 0.99996228, 1.00000008):
        p = multiply_add(builder, p, r, constant(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _ints), ir.Constant(_ints, [23] * 16))
    return builder.bitcast(builder.add(builder.bitcast(p, _ints), exponent), _floats)


@helper
def _hide(scores, num_seen, num_keys):
    """Scores beyond the first `num_seen` become the lowest."""
    for index in range(max(0, num_seen) // LANES * LANES, num_keys, LANES):
        place = scores + index * 4
        store_float32(place, keep_first(load_float32(place), num_seen - index, LOWEST))


@helper
def _soften(scores, weights, num_keys, scaling, state, outputs, width):
    """One query's scores of a step become weights; `state` as in decode.py."""
    highest = splat(LOWEST)
    for index in range(0, num_keys, LANES):
        highest = maximum(load_float32(scores + index * 4), highest)
    before, total = load_scalar(state), load_scalar(state + 4)
    largest = max(before, lanes_max(highest) * scaling)
    if largest > before:
        shrink = _exp(splat(before - largest))
        total *= lanes_max(shrink)
        for index in range(0, width, LANES):
            store_float32(outputs + index * 4, mul(load_float32(outputs + index * 4), shrink))
    factor, base, sums = splat(scaling), splat(-largest), splat(np.float32(0.0))
    for index in range(0, num_keys, LANES):
        weight = _exp(fma(load_float32(scores + index * 4), factor, base))
        _store_weights(weights + index * 2, weight)
        sums = add(sums, weight)
    store_scalar(state, largest)
    store_scalar(state + 4, total + lanes_sum(sums))


@helper
def _segment_of(segments, index, column):
    """The address of the segment in which the piece or group `index` lies; `column` tells where each one's begin."""
    last = segments + SEGMENTS + (load_int64(segments + 8) - 1) * SEGMENT
    while load_int64(last + column) > index:
        last -= SEGMENT
    return last


@helper
def _lay_out_all(block, segments, keys, values, num_kv_heads, width, block_size, memory, value_memory, rows):
    piece_bytes, stride = KEYS * width * 2, num_kv_heads * width * 2
    num_pieces = load_int64(segments + 16)
    while True:
        item = take_next(block + 8)
        if item >= num_kv_heads * num_pieces:
            break
        head = item // num_pieces
        piece = item - head * num_pieces
        segment = _segment_of(segments, piece, 32)
        _lay_out(
            keys + head * width * 2,
            values + head * width * 2,
            load_int64(segment + 24),
            (piece - load_int64(segment + 32)) * KEYS,
            load_int64(segment + 16) + load_int64(segment + 8),
            block_size,
            stride,
            width,
            rows,
            memory + item * piece_bytes,
            value_memory + item * piece_bytes,
        )
        count_done(block + 16)
    wait_until_done(block + 16, num_kv_heads * num_pieces)


@helper
def _begin(source, stride, count, queries, outputs, state, width, is_bf16):
    """32 queries as bfloat16, the last one repeated where there are fewer; nothing weighed yet."""
    size = 2 if is_bf16 else 4
    for row in range(QUERIES):
        store_scalar(state + row * 8, LOWEST)
        store_scalar(state + row * 8 + 4, np.float32(0.0))
        query = source + min(row, count - 1) * stride
        for index in range(0, width, LANES):
            store_bf16(queries + (row * width + index) * 2, load(query + index * size, is_bf16))
            store_float32(outputs + (row * width + index) * 4, splat(np.float32(0.0)))


@helper
def _end(target, stride, count, outputs, state, width, is_bf16):
    size = 2 if is_bf16 else 4
    for row in range(count):
        factor = splat(np.float32(1.0) / load_scalar(state + row * 8 + 4))
        for index in range(0, width, LANES):
            value = mul(load_float32(outputs + (row * width + index) * 4), factor)
            store(target + row * stride + index * size, value, is_bf16)


@helper
def _attend(queries, key_tiles, value_tiles, position, count, scaling, scores, weights, state, outputs, width):
    """`count` queries, the first at `position`, over all keys up to themselves."""
    piece_bytes = KEYS * width * 2
    for key in range(0, position + count, STEP):
        num_pieces = (min(STEP, position + count - key) + KEYS - 1) // KEYS
        place = key // KEYS * piece_bytes
        for piece in range(num_pieces):
            _score(queries, width, key_tiles + place + piece * piece_bytes, scores + piece * KEYS * 4)
        for row in range(count):
            row_scores = scores + row * STEP * 4
            _hide(row_scores, position + row + 1 - key, num_pieces * KEYS)
            place_of_row = outputs + row * width * 4
            _soften(
                row_scores, weights + row * STEP * 2, num_pieces * KEYS, scaling, state + row * 8, place_of_row, width
            )
        _weigh(weights, num_pieces, value_tiles + place, width, outputs)


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
        queries, outputs = stack(QUERIES * width * 2), stack(QUERIES * width * 4)
        scores, weights = stack(QUERIES * STEP * 4), stack(QUERIES * STEP * 2)
        state, rows = stack(QUERIES * 8), stack(128)
        memory, num_pieces, num_groups = load_int64(segments), load_int64(segments + 16), load_int64(segments + 24)
        piece_bytes, stride = KEYS * width * 2, num_heads * width * size
        value_memory = memory + num_kv_heads * num_pieces * piece_bytes
        _lay_out_all(block, segments, keys, values, num_kv_heads, width, block_size, memory, value_memory, rows)
        amx.configure(shapes)
        while True:
            item = take_next(block)
            if item >= num_heads * num_groups:
                break
            # The last tokens have the most keys: begin with them, so that no thread is left with one at the end.
            group = num_groups - 1 - item // num_heads
            head = item % num_heads
            segment = _segment_of(segments, group, 40)
            first = (group - load_int64(segment + 40)) * QUERIES
            count = min(QUERIES, load_int64(segment + 8) - first)
            place = ((load_int64(segment) + first) * num_heads + head) * width * size
            tiles = (head // (num_heads // num_kv_heads) * num_pieces + load_int64(segment + 32)) * piece_bytes
            _begin(query + place, stride, count, queries, outputs, state, width, is_bf16)
            _attend(
                queries,
                memory + tiles,
                value_memory + tiles,
                load_int64(segment + 16) + first,
                count,
                scaling,
                scores,
                weights,
                state,
                outputs,
                width,
            )
            _end(out + place, stride, count, outputs, state, width, is_bf16)
        amx.release()

    return attention
