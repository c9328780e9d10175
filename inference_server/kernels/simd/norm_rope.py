"""The kernels for rows of activations: RMS norm, gate, and rotary positions with the write to the KV cache.

A row is a work item: each thread takes the next row until none is left. Word 0 of the argument block counts the rows
taken; the arguments begin at word 3 (see arguments.py). `size` is the number of bytes of a value.
"""

# mypy: disable-error-code="no-untyped-def"

import math
from typing import Any

import numpy as np

from inference_server.kernels.simd.elements import load, load_some, rounded, store, store_some
from inference_server.kernels.simd.memory import argument, load_int64, real_argument, take_next
from inference_server.kernels.simd.silu import gated
from inference_server.kernels.simd.vectors import LANES, add, fma, helper, lanes_sum, mul, splat, sub


@helper
def _square_sum(row, width, size, is_bf16):
    """Return the sum of a row's squares, from four independent partial sums, which hide the latency of additions."""
    first = second = third = fourth = splat(np.float32(0.0))
    step = LANES * size
    position, end = row, row + width * size
    while position + 4 * step <= end:
        a, b = load(position, is_bf16), load(position + step, is_bf16)
        c, d = load(position + 2 * step, is_bf16), load(position + 3 * step, is_bf16)
        first, second, third, fourth = fma(a, a, first), fma(b, b, second), fma(c, c, third), fma(d, d, fourth)
        position += 4 * step
    while position < end:
        a = load(position, is_bf16)
        first = fma(a, a, first)
        position += step
    return lanes_sum(add(add(first, second), add(third, fourth)))


@helper
def _normalise(source, weight, target, width, eps, is_bf16):
    """Write one row's RMS norm times `weight`. The norm is rounded to the row's dtype before the multiplication."""
    size = 2 if is_bf16 else 4
    mean = _square_sum(source, width, size, is_bf16) / np.float32(width)
    factor = splat(np.float32(1.0) / math.sqrt(mean + eps))
    for offset in range(0, width * size, LANES * size):
        normed = rounded(mul(load(source + offset, is_bf16), factor), is_bf16)
        store(target + offset, mul(load(weight + offset, is_bf16), normed), is_bf16)


def make_rms_norm(is_bf16: bool) -> Any:
    """Return the kernel `rms_norm`. `is_bf16`: True if x, weight and out are bfloat16, False for float32."""
    size = 2 if is_bf16 else 4

    def rms_norm(block):
        x, weight, out = argument(block, 3), argument(block, 4), argument(block, 5)
        num_rows, width, eps = argument(block, 6), argument(block, 7), real_argument(block, 8)
        while True:
            row = take_next(block)
            if row >= num_rows:
                break
            _normalise(x + row * width * size, weight, out + row * width * size, width, eps, is_bf16)

    return rms_norm


def make_add_rms_norm(is_bf16: bool) -> Any:
    """Return the kernel `add_rms_norm`, which adds delta to x and writes the norm of the sum to out."""
    size = 2 if is_bf16 else 4

    def add_rms_norm(block):
        x, delta, weight, out = argument(block, 3), argument(block, 4), argument(block, 5), argument(block, 6)
        num_rows, width, eps = argument(block, 7), argument(block, 8), real_argument(block, 9)
        while True:
            row = take_next(block)
            if row >= num_rows:
                break
            place = row * width * size
            for offset in range(place, place + width * size, LANES * size):
                store(x + offset, add(load(x + offset, is_bf16), load(delta + offset, is_bf16)), is_bf16)
            _normalise(x + place, weight, out + place, width, eps, is_bf16)

    return add_rms_norm


def make_silu_mul(is_bf16: bool) -> Any:
    """Return the kernel `silu_mul`. `is_bf16`: True if gate_up and out are bfloat16, False for float32."""
    size = 2 if is_bf16 else 4

    def silu_mul(block):
        gate_up, out = argument(block, 3), argument(block, 4)
        num_rows, width = argument(block, 5), argument(block, 6)
        while True:
            row = take_next(block)
            if row >= num_rows:
                break
            gates, target = gate_up + row * 2 * width * size, out + row * width * size
            ups = gates + width * size
            for offset in range(0, width * size, LANES * size):
                gate, up = load(gates + offset, is_bf16), load(ups + offset, is_bf16)
                store(target + offset, gated(gate, up, is_bf16), is_bf16)

    return silu_mul


@helper
def _rotate_some(source, target, cos, sin, start, half, all_lanes, cos_is_bf16, is_bf16, target_is_bf16):
    """Rotate LANES pairs of values from `start` on, or if not `all_lanes`, a single pair."""
    size, target_size = 2 if is_bf16 else 4, 2 if target_is_bf16 else 4
    angle_size = 2 if cos_is_bf16 else 4
    low_angle, high_angle = start * angle_size, (start + half) * angle_size
    a = load_some(source + start * size, all_lanes, is_bf16)
    b = load_some(source + (start + half) * size, all_lanes, is_bf16)
    first = mul(b, load_some(sin + low_angle, all_lanes, cos_is_bf16))
    second = mul(a, load_some(sin + high_angle, all_lanes, cos_is_bf16))
    first = sub(mul(a, load_some(cos + low_angle, all_lanes, cos_is_bf16)), first)
    second = fma(b, load_some(cos + high_angle, all_lanes, cos_is_bf16), second)
    store_some(target + start * target_size, first, all_lanes, target_is_bf16)
    store_some(target + (start + half) * target_size, second, all_lanes, target_is_bf16)


@helper
def _rotate(source, target, cos, sin, half, cos_is_bf16, is_bf16, target_is_bf16):
    """Rotate one head (a, b) to (a cos - b sin, b cos + a sin), where a and b are its halves of `half` values."""
    whole = half - half % LANES
    for start in range(0, whole, LANES):
        _rotate_some(source, target, cos, sin, start, half, True, cos_is_bf16, is_bf16, target_is_bf16)
    for start in range(whole, half):
        _rotate_some(source, target, cos, sin, start, half, False, cos_is_bf16, is_bf16, target_is_bf16)


@helper
def _copy(source, target, width, is_bf16, target_is_bf16):
    """Copy `width` values, converted to the target's dtype."""
    size, target_size = 2 if is_bf16 else 4, 2 if target_is_bf16 else 4
    whole = width - width % LANES
    for index in range(0, whole, LANES):
        store(target + index * target_size, load(source + index * size, is_bf16), target_is_bf16)
    for index in range(whole, width):
        value = load_some(source + index * size, False, is_bf16)
        store_some(target + index * target_size, value, False, target_is_bf16)


def make_rope_and_write(is_bf16: bool, cos_is_bf16: bool, cache_is_bf16: bool) -> Any:
    """Return the kernel `rope_and_write`.

    Args:
        is_bf16: True if qkv and the rotated queries are bfloat16, False for float32.
        cos_is_bf16: True if cosines and sines are bfloat16, False for float32.
        cache_is_bf16: True if keys and values in the cache are bfloat16, False for float32.
    """
    size = 2 if is_bf16 else 4
    angle_size = 2 if cos_is_bf16 else 4
    cache_size = 2 if cache_is_bf16 else 4

    def rope_and_write(block):
        qkv, cosines, sines = argument(block, 3), argument(block, 4), argument(block, 5)
        query, keys, values, rows = argument(block, 6), argument(block, 7), argument(block, 8), argument(block, 9)
        num_rows, num_heads = argument(block, 10), argument(block, 11)
        num_kv_heads, width = argument(block, 12), argument(block, 13)
        head, half = width * size, width // 2
        while True:
            row = take_next(block)
            if row >= num_rows:
                break
            source = qkv + row * (num_heads + 2 * num_kv_heads) * head
            cos, sin = cosines + row * width * angle_size, sines + row * width * angle_size
            written = load_int64(rows + row * 8) * num_kv_heads * width * cache_size
            for index in range(num_heads):
                target = query + (row * num_heads + index) * head
                _rotate(source + index * head, target, cos, sin, half, cos_is_bf16, is_bf16, is_bf16)
            source += num_heads * head
            for index in range(num_kv_heads):
                target = keys + written + index * width * cache_size
                _rotate(source + index * head, target, cos, sin, half, cos_is_bf16, is_bf16, cache_is_bf16)
            source += num_kv_heads * head
            _copy(source, values + written, num_kv_heads * width, is_bf16, cache_is_bf16)

    return rope_and_write
