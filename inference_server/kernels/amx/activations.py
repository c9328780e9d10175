"""Converts rows of activations to 15-bit fixed point, as two int8 digits, for the integer kernels.

x = row_scale * (128 * high + low), where row_scale maps the row's largest absolute value to 127 * 128. 8 rows make a
block. For every 32 or 64 inputs it contains a tile of 16 rows of int8: 8 rows of high digits, then 8 rows of low digits.
The blocks are followed by the row scales, one float32 for each row, and by the sum of each group of 32 inputs, float32 in
units of the row scale.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from inference_server.kernels.simd.elements import store_bf16
from inference_server.kernels.simd.memory import store_scalar, take_next
from inference_server.kernels.simd.vectors import (
    LANES,
    add,
    fma,
    helper,
    intrinsic_of,
    lanes_max,
    lanes_sum,
    load_float32,
    maximum,
    mul,
    pointer,
    splat,
    sub,
    vector,
)

ROWS = 8  # rows of activations in a block
GROUP = 32  # inputs of a group of int4 weights
_MAX_CODE = np.float32(127 * 128)
_SMALLEST = np.float32(1e-30)  # a row whose values are all closer to 0 is treated as zeros
_int64, _int32, _int8 = ir.IntType(64), ir.IntType(32), ir.IntType(8)
_ints, _bytes, _floats = ir.VectorType(_int32, 16), ir.VectorType(_int8, 16), ir.VectorType(ir.FloatType(), 16)


def int_vector(value: int) -> Any:
    """Return a vector with the same int32 in all 16 lanes."""
    return ir.Constant(_ints, [value] * 16)


@intrinsic_of(vector, types.int64, types.int64, vector)
def _store_digits(builder: Any, high: Any, low: Any, value: Any) -> Any:
    """Round 16 values to integers and write their high and low digits, int8. Returns the integers as float32."""
    magic = ir.Constant(_floats, [12582912.0] * 16)  # adding 1.5 * 2**23 moves the integer into the low bits
    shifted = builder.fadd(value, magic)
    whole = builder.sub(builder.bitcast(shifted, _ints), builder.bitcast(magic, _ints))
    upper = builder.ashr(builder.add(whole, int_vector(64)), int_vector(7))
    lower = builder.sub(whole, builder.shl(upper, int_vector(7)))
    builder.store(builder.trunc(upper, _bytes), pointer(builder, high, _bytes), align=1)
    builder.store(builder.trunc(lower, _bytes), pointer(builder, low, _bytes), align=1)
    return builder.fsub(shifted, magic)


@intrinsic_of(types.void, types.int64)
def count_done(builder: Any, address: Any) -> None:
    """Add 1 to the counter at `address`, after all of this thread's writes."""
    builder.atomic_rmw("add", pointer(builder, address, _int64), ir.Constant(_int64, 1), "acq_rel")


@intrinsic_of(types.int64, types.int64)
def _num_done(builder: Any, address: Any) -> Any:
    """Return the counter at `address`. Writes of the threads that have added to it are then visible to this thread."""
    return builder.load_atomic(pointer(builder, address, _int64), "acquire", 8)


@helper
def wait_until_done(address, wanted):
    """Wait until the counter at `address` has reached `wanted`."""
    while _num_done(address) < wanted:
        pass


@helper
def _split_row(source, target, row_scale, sums, width, tile_inputs):
    """Write one row's digits into the tiles of its block, its row scale, and the sums of its groups.

    A tile holds `tile_inputs` inputs. The sums are written only if a tile holds exactly one group. A row with NaN or an
    infinity gets the row scale NaN, so that its whole result is NaN.
    """
    largest = splat(np.float32(0.0))
    not_finite = splat(np.float32(0.0))  # becomes NaN if a value is NaN or infinite
    zero = splat(np.float32(0.0))
    for offset in range(0, width * 4, 64):
        value = load_float32(source + offset)
        largest = maximum(maximum(value, sub(zero, value)), largest)
        not_finite = fma(value, zero, not_finite)
    most = lanes_max(largest)
    factor = splat(np.float32(0.0))
    if most > _SMALLEST:
        factor = splat(_MAX_CODE / most)
    store_scalar(row_scale, most / _MAX_CODE + lanes_sum(not_finite))
    for start in range(0, width, GROUP):
        place = target + start // tile_inputs * 2 * ROWS * tile_inputs + start % tile_inputs
        first = _store_digits(place, place + ROWS * tile_inputs, mul(load_float32(source + start * 4), factor))
        place += 16
        second = _store_digits(place, place + ROWS * tile_inputs, mul(load_float32(source + start * 4 + 64), factor))
        if tile_inputs == GROUP:
            store_scalar(sums + start // GROUP * 4, lanes_sum(add(first, second)))


@helper
def row_scales_after(workspace, num_rows, width):
    """Return the address of the row scales, which follow the blocks of digits."""
    return workspace + (num_rows + ROWS - 1) // ROWS * 2 * ROWS * width


@helper
def sums_after(row_scales, num_rows):
    """Return the address of the groups' sums, which follow the row scales."""
    return row_scales + (num_rows + ROWS - 1) // ROWS * ROWS * 4


@helper
def split_rows(block, x, workspace, num_rows, width, tile_inputs):
    """Convert all rows, shared among the threads. Word 1 of the argument block counts rows taken, word 2 rows done.

    Returns when all rows are done.
    """
    row_scales = row_scales_after(workspace, num_rows, width)
    sums = sums_after(row_scales, num_rows)
    while True:
        row = take_next(block + 8)
        if row >= num_rows:
            break
        target = workspace + row // ROWS * 2 * ROWS * width + row % ROWS * tile_inputs
        _split_row(
            x + row * width * 4, target, row_scales + row * 4, sums + row * (width // GROUP) * 4, width, tile_inputs
        )
        count_done(block + 16)
    wait_until_done(block + 16, num_rows)


@helper
def round_rows(block, x, workspace, num_rows, width):
    """Round all rows to bfloat16, (rows, inputs), shared among the threads as in split_rows.

    Returns when all rows are done.
    """
    while True:
        row = take_next(block + 8)
        if row >= num_rows:
            break
        for index in range(0, width, LANES):
            store_bf16(workspace + (row * width + index) * 2, load_float32(x + (row * width + index) * 4))
        count_done(block + 16)
    wait_until_done(block + 16, num_rows)
