"""The kernel of decode attention: one new token of each sequence attends over the sequence's blocks of keys and values.

A work item is one sequence and one KV head, with the `group` of query heads that share it. The keys are read once,
KEYS_PER_UPDATE of them at a time, with an online softmax: the kernel keeps the largest score so far, and the sum of weights
and the weighted values relative to it. One thread computes an item, in an order that depends on the sequence's length only,
so the result depends neither on other sequences nor on the number of threads.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np

from inference_server.kernels.simd.attention_loops import (
    KEYS_PER_UPDATE,
    MAX_QUERIES,
    accumulate_bf16,
    accumulate_float32,
    dots,
)
from inference_server.kernels.simd.elements import load, store
from inference_server.kernels.simd.memory import (
    argument,
    load_int32,
    load_int64,
    load_scalar,
    prefetch,
    real_argument,
    stack,
    store_int64,
    store_scalar,
    take_next,
)
from inference_server.kernels.simd.vectors import (
    LANES,
    add,
    div,
    exp,
    helper,
    keep_first,
    lanes_max,
    lanes_sum,
    load_float32,
    maximum,
    mul,
    splat,
    store_float32,
    sub,
)

LOWEST = np.float32(-1e30)  # below every score, and finite: the difference of two infinities would be NaN
_BYTES = LANES * 4


@helper
def _scale_queries(source, queries, total, scaling, is_bf16):
    """Write `total` values of the queries times `scaling`, as float32."""
    size = 2 if is_bf16 else 4
    factor = splat(scaling)
    for index in range(0, total, LANES):
        store_float32(queries + index * 4, mul(load(source + index * size, is_bf16), factor))


@helper
def _clear(outputs, total, is_bf16):
    """Write `total` zeros."""
    size = 2 if is_bf16 else 4
    for index in range(0, total, LANES):
        store(outputs + index * size, splat(np.float32(0.0)), is_bf16)


@helper
def _locate(table, block_size, start, count, keys, key_stride, values, value_stride, key_rows, value_rows):
    """Write the addresses of the keys and values at the positions start, …, start + count - 1."""
    done = 0
    while done < count:
        block = (start + done) // block_size
        offset = (start + done) - block * block_size
        run = min(block_size - offset, count - done)
        row = load_int32(table + block * 4) * block_size + offset
        for index in range(run):
            store_int64(key_rows + (done + index) * 8, keys + (row + index) * key_stride)
            store_int64(value_rows + (done + index) * 8, values + (row + index) * value_stride)
        done += run


@helper
def _prefetch_row(rows, index, num_bytes):
    """Start loading the row at the address rows[index]."""
    row = load_int64(rows + index * 8)
    for line in range(0, num_bytes, 64):
        prefetch(row + line)


@helper
def _pack_keys(key_rows, value_rows, first, count, width, value_width, packed, is_bf16):
    """Write LANES keys as float32, (width / LANES, LANES keys, LANES). Keys beyond `count` repeat the last one.

    Prefetches their values and the next keys, because the CPU does not predict accesses across rows and blocks.
    """
    size = 2 if is_bf16 else 4
    for key in range(LANES):
        index = min(first + key, count - 1)
        row = load_int64(key_rows + index * 8)
        _prefetch_row(key_rows, min(index + LANES, count - 1), width * size)
        _prefetch_row(value_rows, index, value_width * size)
        for chunk in range(width // LANES):
            store_float32(packed + (chunk * LANES + key) * _BYTES, load(row + chunk * LANES * size, is_bf16))


@helper
def _softcapped(scores, softcap):
    """Return softcap * tanh(scores / softcap), with tanh(x) = 1 - 2 / (e**2x + 1)."""
    one, two = splat(np.float32(1.0)), splat(np.float32(2.0))
    raised = exp(mul(scores, splat(np.float32(2.0) / softcap)))
    return mul(sub(one, div(two, add(raised, one))), splat(softcap))


@helper
def _score(key_rows, value_rows, count, width, value_width, group, queries, packed, scores, softcap, is_bf16):
    """Write the scores of the keys of one update, (group, KEYS_PER_UPDATE) float32.

    Scores beyond `count` in the last vector are LOWEST.
    """
    for first in range(0, count, LANES):
        _pack_keys(key_rows, value_rows, first, count, width, value_width, packed, is_bf16)
        for head in range(group):
            products = dots(queries + head * width * 4, packed, width // LANES)
            if softcap != np.float32(0.0):
                products = _softcapped(products, softcap)
            store_float32(scores + (head * KEYS_PER_UPDATE + first) * 4, keep_first(products, count - first, LOWEST))


@helper
def _softmax_update(scores, count, state, outputs, value_width):
    """Replace one head's scores of one update with softmax weights, and update its state and outputs.

    `state` is the largest score and the sum of weights so far, float32. If the largest score rises, the sum and `outputs`
    (value_width,) are multiplied by e**(before - largest), which makes them relative to the new largest score.
    """
    highest = splat(LOWEST)
    for index in range(0, count, LANES):
        highest = maximum(load_float32(scores + index * 4), highest)
    before = load_scalar(state)
    largest = max(before, lanes_max(highest))
    total = load_scalar(state + 4)
    if largest > before:
        factor = exp(splat(before - largest))
        total *= lanes_max(factor)
        for index in range(0, value_width, LANES):
            store_float32(outputs + index * 4, mul(load_float32(outputs + index * 4), factor))
    base, weights = splat(largest), splat(np.float32(0.0))
    for index in range(0, count, LANES):
        weight = exp(sub(load_float32(scores + index * 4), base))
        store_float32(scores + index * 4, weight)
        weights = add(weights, weight)
    store_scalar(state, largest)
    store_scalar(state + 4, total + lanes_sum(weights))


@helper
def _finish_item(outputs, state, target, group, width, is_bf16):
    """Divide the weighted values by the sums of weights, and write the result."""
    size = 2 if is_bf16 else 4
    for head in range(group):
        factor = splat(np.float32(1.0) / load_scalar(state + head * 8 + 4))
        for index in range(0, width, LANES):
            place = head * width + index
            store(target + place * size, mul(load_float32(outputs + place * 4), factor), is_bf16)


@helper
def _start_item(source, queries, outputs, state, group, width, value_width, scaling, is_bf16):
    """Write the queries of one item as scaled float32, and initialise outputs and state."""
    _scale_queries(source, queries, group * width, scaling, is_bf16)
    _clear(outputs, group * value_width, False)
    for head in range(group):
        store_scalar(state + head * 8, LOWEST)
        store_scalar(state + head * 8 + 4, np.float32(0.0))


@helper
def _accumulate_values(outputs, weights, value_rows, count, value_width, group, cache_is_bf16):
    """Add the weighted values of one update to the outputs of all query heads, (group, value_width) float32."""
    for head in range(0, group, MAX_QUERIES):
        place, some = outputs + head * value_width * 4, min(MAX_QUERIES, group - head)
        if cache_is_bf16:
            accumulate_bf16(place, weights + head * KEYS_PER_UPDATE * 4, value_rows, count, value_width, some)
        else:
            accumulate_float32(place, weights + head * KEYS_PER_UPDATE * 4, value_rows, count, value_width, some)


@helper
def _attend(
    first,
    length,
    table,
    block_size,
    head_keys,
    key_stride,
    head_values,
    value_stride,
    sizes,
    queries,
    scratch,
    state,
    outputs,
    softcap,
    cache_is_bf16,
):
    """Attend over the keys from position `first` to `length` of one sequence and KV head.

    `sizes` are width, value width and group. `scratch` contains the addresses of: packed keys, scores, addresses of keys,
    addresses of values.
    """
    width, value_width, group = sizes
    packed, scores, key_rows, value_rows = scratch
    for start in range(first, length, KEYS_PER_UPDATE):
        count = min(KEYS_PER_UPDATE, length - start)
        _locate(table, block_size, start, count, head_keys, key_stride, head_values, value_stride, key_rows, value_rows)
        _score(key_rows, value_rows, count, width, value_width, group, queries, packed, scores, softcap, cache_is_bf16)
        for head in range(group):
            place = outputs + head * value_width * 4
            _softmax_update(scores + head * KEYS_PER_UPDATE * 4, count, state + head * 8, place, value_width)
        _accumulate_values(outputs, scores, value_rows, count, value_width, group, cache_is_bf16)


def make_attention(is_bf16: bool, cache_is_bf16: bool) -> Any:
    """Return the kernel `decode_attention`.

    Args:
        is_bf16: True if queries and result are bfloat16, False for float32.
        cache_is_bf16: True if keys and values are bfloat16, False for float32.
    """
    size, cache_size = 2 if is_bf16 else 4, 2 if cache_is_bf16 else 4

    def attention(block):
        query, keys, values = argument(block, 3), argument(block, 4), argument(block, 5)
        tables, lengths, out = argument(block, 6), argument(block, 7), argument(block, 8)
        num_seqs, num_kv_heads, group = argument(block, 9), argument(block, 10), argument(block, 11)
        width, value_width, block_size = argument(block, 12), argument(block, 13), argument(block, 14)
        table_stride, window = argument(block, 15), argument(block, 16)
        scaling, softcap = real_argument(block, 17), real_argument(block, 18)
        packed = stack(width * _BYTES)
        queries = stack(group * width * 4)
        outputs = stack(group * value_width * 4)
        scores = stack(group * KEYS_PER_UPDATE * 4)
        state = stack(group * 8)
        key_rows = stack(KEYS_PER_UPDATE * 8)
        value_rows = stack(KEYS_PER_UPDATE * 8)
        while True:
            item = take_next(block)
            if item >= num_seqs * num_kv_heads:
                break
            seq = item // num_kv_heads
            kv_head = item - seq * num_kv_heads
            length = load_int32(lengths + seq * 4)
            target = out + item * group * value_width * size
            if length <= 0:
                _clear(target, group * value_width, is_bf16)
                continue
            source = query + item * group * width * size
            _start_item(source, queries, outputs, state, group, width, value_width, scaling, is_bf16)
            _attend(
                max(0, length - window),
                length,
                tables + seq * table_stride * 4,
                block_size,
                keys + kv_head * width * cache_size,
                num_kv_heads * width * cache_size,
                values + kv_head * value_width * cache_size,
                num_kv_heads * value_width * cache_size,
                (width, value_width, group),
                queries,
                (packed, scores, key_rows, value_rows),
                state,
                outputs,
                softcap,
                cache_is_bf16,
            )
            _finish_item(outputs, state, target, group, value_width, is_bf16)

    return attention
