"""Linear layers with bfloat16 weights on the tile registers of AMX.

A row's result has the same bits whatever other rows there are: the order of its sums is that of the inputs, 32 at a time.
The block of the kernel is that of linear.py, but needs no memory; the shapes are two, for whole groups of 32 rows and for
what remains. Weights lie in strips of 32 outputs: for each 32 inputs two tiles of 16 pairs of inputs for 16 outputs.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from numba import types
from numba.core import cgutils

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.linear_int8 import OUTPUTS, W, X, number
from inference_server.kernels.simd.elements import rounded, store_bf16
from inference_server.kernels.simd.silu import gate_rows
from inference_server.kernels.simd.vectors import (
    LANES,
    add,
    argument,
    helper,
    intrinsic_of,
    load_float32,
    moved,
    stack,
    store_float32,
    take_next,
)

TILE_ROWS = 16


def _strip(num_tiles: int) -> Any:
    @intrinsic_of(types.void, *[types.int64] * 5)
    def multiply_strip(builder: Any, rows: Any, row_bytes: Any, weights: Any, num_steps: Any, totals: Any) -> None:
        """`num_tiles` tiles of rows times a strip, 32 inputs at a time. Totals: (tile, row, 32 outputs) float32."""
        for tile in range(2 * num_tiles):
            amx.zero(builder, tile)
        with cgutils.for_range(builder, num_steps) as loop:
            for o in range(2):
                amx.load(builder, W + o, moved(builder, weights, (loop.index, 2048), 1024 * o), number(64))
            for b in range(num_tiles):
                amx.load(builder, X + b, moved(builder, rows, (loop.index, 64), (row_bytes, TILE_ROWS * b)), row_bytes)
                for o in range(2):
                    amx.multiply_bf16(builder, 2 * b + o, X + b, W + o)
        for b in range(num_tiles):
            for o in range(2):
                amx.store(builder, 2 * b + o, moved(builder, totals, 2048 * b + 64 * o), 128)

    return multiply_strip


_ONE, _TWO = _strip(1), _strip(2)


# How results are written: as bfloat16, as float32 rounded to bfloat16, as float32.
NARROW, ROUNDED, WIDE = 0, 1, 2
# 16 gates and their ups become 16 results of a gated MLP: bfloat16 from rounded ones, float32.
GATED_NARROW, GATED_WIDE = 3, 4


@helper
def _finish(totals, bias, out, out_bytes, count, form):
    """`count` rows of a strip plus its bias to their places."""
    for row in range(count):
        for index in range(0, OUTPUTS, LANES):
            value = add(load_float32(totals + row * 128 + index * 4), load_float32(bias + index * 4))
            if form == NARROW:
                store_bf16(out + row * out_bytes + index * 2, value)
            else:
                store_float32(out + row * out_bytes + index * 4, rounded(value, form == ROUNDED))


@helper
def _some_rows(x, row_bytes, strip, num_steps, totals, bias, out, out_bytes, count, form):
    """At most 32 rows, as many as the tiles are told to hold."""
    if count > TILE_ROWS:
        _TWO(x, row_bytes, strip, num_steps, totals)
    else:
        _ONE(x, row_bytes, strip, num_steps, totals)
    if form == GATED_NARROW:
        _finish(totals, bias, totals, 128, count, ROUNDED)
        gate_rows(totals, out, out_bytes, count, True)
    elif form == GATED_WIDE:
        _finish(totals, bias, totals, 128, count, WIDE)
        gate_rows(totals, out, out_bytes, count, False)
    else:
        _finish(totals, bias, out, out_bytes, count, form)


@helper
def configure_first(shapes, num_rows):
    """For multiply_rows: once before the first strip."""
    amx.configure(shapes + (0 if num_rows >= 32 else 64))


@helper
def multiply_rows(x, strip, shapes, totals, bias, out, num_rows, width, out_bytes, form):
    """All rows, bfloat16 (rows, inputs), times one strip of weights, plus its bias. `totals`: room for 4096 bytes."""
    num_steps, whole = width // 32, num_rows - num_rows % 32
    if whole and whole < num_rows:
        amx.configure(shapes)
    for row in range(0, whole, 32):
        place, target = x + row * width * 2, out + row * out_bytes
        _some_rows(place, width * 2, strip, num_steps, totals, bias, target, out_bytes, 32, form)
    if whole < num_rows:
        if whole:
            amx.configure(shapes + 64)
        place, target = x + whole * width * 2, out + whole * out_bytes
        _some_rows(place, width * 2, strip, num_steps, totals, bias, target, out_bytes, num_rows - whole, form)


def make_bf16(form: int) -> Any:
    """`form`: NARROW, ROUNDED or GATED_NARROW."""
    # Bytes of a row of the result for each output, in halves.
    out_halves = {NARROW: 4, ROUNDED: 8, GATED_NARROW: 2}[form]

    def linear_bf16(block):
        weights, x, out = argument(block, 3), argument(block, 5), argument(block, 6)
        bias, num_rows, width = argument(block, 7), argument(block, 8), argument(block, 9)
        num_outputs, shapes = argument(block, 10), argument(block, 12)
        totals = stack(4096)
        configure_first(shapes, num_rows)
        while True:
            strip = take_next(block)
            if strip >= num_outputs // OUTPUTS:
                break
            first = strip * OUTPUTS
            multiply_rows(
                x,
                weights + first * width * 2,
                shapes,
                totals,
                bias + first * 4,
                out + first * out_halves // 2,
                num_rows,
                width,
                num_outputs * out_halves // 2,
                form,
            )
        amx.release()

    return linear_bf16
