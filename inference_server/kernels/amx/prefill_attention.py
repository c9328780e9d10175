"""The kernel of prefill attention on AMX: consecutive tokens of several sequences attend over their blocks of keys and values.

First the threads copy the values into tiles. Then a work item is 32 queries of one head, with an online softmax:
scores of KEYS_PER_UPDATE keys, their weights, and the weighted values. All matrices are transposed, one query in each
lane of a vector: keys are loaded as tiles directly from the cache, and nothing is summed or compared across lanes. The
first update begins at the sequence's first key, so a token's result does not depend on how its prompt is chunked.

Scores are (keys, 32 queries) float32, weights bfloat16, outputs (head_dim, 32 queries) float32.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import count_done, int_vector, wait_until_done
from inference_server.kernels.amx.prefill_tiles import (
    QUERIES,
    ROW_BYTES,
    TILE_BYTES,
    accumulate_values,
    multiply_keys,
    store_pair,
    transpose,
    transpose_values,
)
from inference_server.kernels.simd.decode_attention import LOWEST
from inference_server.kernels.simd.elements import load, store, store_bf16
from inference_server.kernels.simd.memory import argument, load_int32, load_int64, real_argument, stack, take_next
from inference_server.kernels.simd.vectors import (
    LANES,
    add,
    constant,
    div,
    helper,
    intrinsic_of,
    lanes_max,
    load_float32,
    maximum,
    mul,
    multiply_add,
    splat,
    splatted,
    store_float32,
    sub,
    vector,
)

KEYS = 32  # keys of a piece, whose values are packed together; a block holds whole pieces
KEYS_PER_UPDATE = 128  # keys between two updates of the softmax
SEGMENTS, SEGMENT = 32, 48  # bytes of the table's header, and of each segment
# The reference of the softmax is set to the largest score only if the score exceeds it by more than this. Weights are at
# most e**8, which is well within float32's range, and nearly all steps skip rescaling (a technique of FlashAttention-4).
_MAX_RISE = 8.0
_ints, _floats = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.FloatType(), 16)


@intrinsic_of(vector, vector)
def _exp(builder: Any, x: Any) -> Any:
    """Return e**x with a relative error of 4e-6, far below that of bfloat16, for x <= 80. e**0 is exactly 1.

    The method is as in vectors.exp. The polynomial is fitted at 4,000 Chebyshev nodes between -ln 2 / 2 and ln 2 / 2.
    """
    x = builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(-87.0), x)
    shifted = multiply_add(builder, x, constant(1.44269504088896341), constant(12582912.0))
    n = builder.fsub(shifted, constant(12582912.0))
    r = multiply_add(builder, n, constant(-0.69314718055994531), x)
    p = constant(0.04191753)
    for coefficient in (0.16792161, 0.49998869, 0.99996228, 1.0):
        p = multiply_add(builder, p, r, constant(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _ints), int_vector(23))
    return builder.bitcast(builder.add(builder.bitcast(p, _ints), exponent), _floats)


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
    """Make the sums of weights and the outputs relative to the reference `largest` instead of `before`."""
    factor = _exp(sub(before, largest))
    store_float32(state, largest)
    store_float32(state + 2 * 64, mul(load_float32(state + 2 * 64), factor))
    for index in range(width):
        place = outputs + index * ROW_BYTES
        store_float32(place, mul(load_float32(place), factor))


@helper
def _softmax_update(scores, weights, first_key, num_keys, scaling, position, state, outputs, width):
    """Compute softmax weights from scores: of 16 queries, the first at `position`, with keys from `first_key` on.

    `state` is the address of each query's reference of the softmax, float32. The sums of weights are 128 bytes after it.
    """
    highest, factor = splat(LOWEST), splat(scaling)
    if first_key + num_keys - 1 > position:  # some keys come after some queries
        positions = _positions_from(position)
        for key in range(num_keys):
            place = scores + key * ROW_BYTES
            seen = _mask_later_keys(positions, first_key + key, load_float32(place))
            store_float32(place, seen)
            highest = maximum(seen, highest)
    else:
        for key in range(num_keys):
            highest = maximum(load_float32(scores + key * ROW_BYTES), highest)
    before = load_float32(state)
    largest = _new_reference(before, mul(highest, factor))
    if lanes_max(sub(largest, before)) > np.float32(0.0):
        _rescale(before, largest, state, outputs, width)
    first_sum = second_sum = splat(np.float32(0.0))
    for pair in range(num_keys // 2):
        place = scores + pair * 2 * ROW_BYTES
        first = _exp(sub(mul(load_float32(place), factor), largest))
        second = _exp(sub(mul(load_float32(place + ROW_BYTES), factor), largest))
        first_sum, second_sum = add(first_sum, first), add(second_sum, second)
        store_pair(weights + pair // 16 * 2 * TILE_BYTES + pair % 16 * 64, first, second)
    store_float32(state + 2 * 64, add(load_float32(state + 2 * 64), add(first_sum, second_sum)))


@helper
def _row_offset(table, position, block_size, stride):
    """Return the offset of a position's row in the cache, in bytes."""
    block = position // block_size
    return (load_int32(table + block * 4) * block_size + position - block * block_size) * stride


@helper
def _find_segment(segments, index, column):
    """Return the address of the segment that contains the piece or group `index`.

    `column` is the byte offset, within a segment's entry, of the field with the index of its first piece or group.
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
            transpose_values(
                source + column * 32, stride, count, workspace + (item * (width // 16) + column) * TILE_BYTES
            )
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
            transpose(rows + half * 16 * width * 2 + step * 64, width * 2, queries + (half * steps + step) * TILE_BYTES)
        store_float32(state + half * 64, splat(LOWEST))
        store_float32(state + (2 + half) * 64, splat(np.float32(0.0)))
        for index in range(width):
            store_float32(outputs + index * ROW_BYTES + half * 64, splat(np.float32(0.0)))


@helper
def _finish_item(target, stride, count, outputs, state, scratch, width, is_bf16):
    """Divide the outputs by the sums of weights, and write the result of `count` queries."""
    size = 2 if is_bf16 else 4
    for half in range(2):
        factor = div(splat(np.float32(1.0)), load_float32(state + (2 + half) * 64))
        for column in range(0, width, 16):
            for index in range(column, column + 16):
                place = outputs + index * ROW_BYTES + half * 64
                store_float32(place, mul(load_float32(place), factor))
            transpose(outputs + column * ROW_BYTES + half * 64, ROW_BYTES, scratch)
            for row in range(min(16, count - half * 16)):
                place = target + (half * 16 + row) * stride + column * size
                store(place, load_float32(scratch + row * 64), is_bf16)


@helper
def _attend(
    queries, keys, stride, table, block_size, values, position, count, scaling, step_scratch, outputs, state, width
):
    """Attend with `count` queries, the first at `position`, over all keys up to their own.

    `step_scratch` holds scores and weights of KEYS_PER_UPDATE keys.
    """
    scores, weights = step_scratch, step_scratch + KEYS_PER_UPDATE * ROW_BYTES
    for first in range(0, position + count, KEYS_PER_UPDATE):
        num_pieces = (min(KEYS_PER_UPDATE, position + count - first) + KEYS - 1) // KEYS
        for piece in range(num_pieces):
            source = keys + _row_offset(table, first + piece * KEYS, block_size, stride)
            multiply_keys(source, stride, queries, width, scores + piece * KEYS * ROW_BYTES)
        for half in range(2):
            _softmax_update(
                scores + half * 64,
                weights + half * TILE_BYTES,
                first,
                num_pieces * KEYS,
                scaling,
                position + half * 16,
                state + half * 64,
                outputs + half * 64,
                width,
            )
        accumulate_values(weights, num_pieces, values + first // KEYS * (width // 16) * TILE_BYTES, width, outputs)


def make_attention(is_bf16: bool) -> Any:
    """Return the prefill attention kernel for keys and values in bfloat16.

    `is_bf16`: queries and result are bfloat16, otherwise float32. arguments.prefill_segments builds the table.
    The kernel data are full tile shapes.
    """
    size = 2 if is_bf16 else 4

    def attention(block):
        query, keys, values = argument(block, 3), argument(block, 4), argument(block, 5)
        segments, out = argument(block, 6), argument(block, 7)
        num_heads, num_kv_heads, width = argument(block, 8), argument(block, 9), argument(block, 10)
        block_size, scaling, kernel_data = argument(block, 11), real_argument(block, 12), argument(block, 13)
        queries, outputs, state = stack(QUERIES * width * 2), stack(width * ROW_BYTES), stack(4 * 64)
        step_scratch, rows, scratch = (
            stack(KEYS_PER_UPDATE * ROW_BYTES * 2),
            stack(QUERIES * width * 2),
            stack(TILE_BYTES),
        )
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
