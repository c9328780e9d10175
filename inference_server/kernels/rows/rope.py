"""Emits the kernels that rotate queries and keys by their positions, and write keys and values into the KV cache.

The kernel `norm_rope_and_write` first normalises every query and key head.

A row is a work item: each thread takes the next row until none is left. The argument block is described in
jit/arguments.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from inference_server.kernels.emit.code import LANES, Code
from inference_server.kernels.emit.elements import element_bytes, load, store
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.values import Int
from inference_server.kernels.rows.norms import normalise


@dataclass(frozen=True, slots=True)
class _Angles:
    """Addresses of the cosines and the sines of one row's angles, each (width,) bfloat16 if `is_bf16`, else float32."""

    cos: Int
    sin: Int
    is_bf16: bool


def _pieces(code: Code, count: Int) -> Iterator[tuple[Int, Int, int]]:
    """Divide `count` values into vectors of 16 and remaining single values.

    Yields start, stop and lanes of both parts.
    """
    whole = count - count % LANES
    yield code.integer(0), whole, LANES
    yield whole, count, 1


def _rotate(
    code: Code, source: Int, target: Int, angles: _Angles, half: Int, is_bf16: bool, target_is_bf16: bool
) -> None:
    """Rotate one head (a, b) to (a cos - b sin, b cos + a sin), where a and b are its halves of `half` values."""
    size, target_size, angle_size = (element_bytes(each) for each in (is_bf16, target_is_bf16, angles.is_bf16))
    for start, stop, lanes in _pieces(code, half):
        with code.loop(start, stop, lanes) as low:
            high = low + half
            a, b = (load(code, source + index * size, is_bf16, lanes) for index in (low, high))
            cos_a, cos_b, sin_a, sin_b = (
                load(code, table + index * angle_size, angles.is_bf16, lanes)
                for table in (angles.cos, angles.sin)
                for index in (low, high)
            )
            store(code, a * cos_a - b * sin_a, target + low * target_size, target_is_bf16)
            store(code, b.multiply_add(cos_b, a * sin_b), target + high * target_size, target_is_bf16)


def _copy(code: Code, source: Int, target: Int, width: Int, is_bf16: bool, target_is_bf16: bool) -> None:
    """Copy `width` values, converted to the target's dtype."""
    size, target_size = element_bytes(is_bf16), element_bytes(target_is_bf16)
    for start, stop, lanes in _pieces(code, width):
        with code.loop(start, stop, lanes) as index:
            value = load(code, source + index * size, is_bf16, lanes)
            store(code, value, target + index * target_size, target_is_bf16)


def make_rope_and_write(has_norms: bool, is_bf16: bool, cos_is_bf16: bool, cache_is_bf16: bool) -> Emit:
    """Return the function that emits the kernel `rope_and_write`, or `norm_rope_and_write`.

    Args:
        has_norms: True for the kernel that normalises query and key heads, in place, before it rotates them.
        is_bf16: True if qkv and the rotated queries are bfloat16, False for float32.
        cos_is_bf16: True if cosines and sines are bfloat16, False for float32.
        cache_is_bf16: True if keys and values in the cache are bfloat16, False for float32.
    """
    size, angle_size, cache_size = (element_bytes(each) for each in (is_bf16, cos_is_bf16, cache_is_bf16))

    def rope_and_write(code: Code, block: Int) -> None:
        qkv, cosines, sines, query, keys, values, rows = (code.argument(block, index) for index in range(3, 10))
        num_rows, num_heads, num_kv_heads, width = (code.argument(block, index) for index in range(10, 14))
        head, cache_head, half = width * size, width * cache_size, width // 2
        with code.work_items(block, num_rows) as row:
            queries = qkv + row * (num_heads + num_kv_heads * 2) * head
            new_keys = queries + num_heads * head
            angle = row * width * angle_size
            angles = _Angles(cosines + angle, sines + angle, cos_is_bf16)
            written = code.load_int64(rows + row * 8) * num_kv_heads * cache_head
            if has_norms:
                weights, eps = [code.argument(block, index) for index in (14, 15)], code.float_argument(block, 16)
                for first, count, weight in zip((queries, new_keys), (num_heads, num_kv_heads), weights, strict=True):
                    with code.loop(0, count) as index:
                        place = first + index * head
                        normalise(code, place, weight, place, width, eps, is_bf16)
            with code.loop(0, num_heads) as index:
                target = query + (row * num_heads + index) * head
                _rotate(code, queries + index * head, target, angles, half, is_bf16, is_bf16)
            with code.loop(0, num_kv_heads) as index:
                target = keys + written + index * cache_head
                _rotate(code, new_keys + index * head, target, angles, half, is_bf16, cache_is_bf16)
            new_values = new_keys + num_kv_heads * head
            _copy(code, new_values, values + written, num_kv_heads * width, is_bf16, cache_is_bf16)

    return rope_and_write
