"""Rows of activations as whole numbers of 15 bits, relative to each row's largest, split into two int8.

x = unit * (128 * high + low). 8 rows make a block: for each piece of 32 or 64 inputs a tile of 16 rows of int8, the high
parts before the low parts. After the blocks come the units, one float32 for each row, then the sums of each group of 32
inputs.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from inference_server.kernels.simd.elements import store_bf16
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
    store_scalar,
    sub,
    take_next,
    vector,
)

ROWS = 8  # of activations in one block
GROUP = 32
_MOST = np.float32(127 * 128)
_SMALLEST = np.float32(1e-30)  # below it, a row is zero
_int64, _int32, _int8 = ir.IntType(64), ir.IntType(32), ir.IntType(8)
_ints, _bytes, _floats = ir.VectorType(_int32, 16), ir.VectorType(_int8, 16), ir.VectorType(ir.FloatType(), 16)


def ints_of(value: int) -> Any:
    return ir.Constant(_ints, [value] * 16)


@intrinsic_of(vector, types.int64, types.int64, vector)
def _split(builder: Any, high: Any, low: Any, value: Any) -> Any:
    """Rounds, writes the high and the low int8 of 16 numbers, and returns the whole numbers as float32."""
    magic = ir.Constant(_floats, [12582912.0] * 16)  # 1.5 * 2**23 leaves an integer in the low bits
    shifted = builder.fadd(value, magic)
    whole = builder.sub(builder.bitcast(shifted, _ints), builder.bitcast(magic, _ints))
    upper = builder.ashr(builder.add(whole, ints_of(64)), ints_of(7))
    lower = builder.sub(whole, builder.shl(upper, ints_of(7)))
    builder.store(builder.trunc(upper, _bytes), pointer(builder, high, _bytes), align=1)
    builder.store(builder.trunc(lower, _bytes), pointer(builder, low, _bytes), align=1)
    return builder.fsub(shifted, magic)


@intrinsic_of(types.void, types.int64)
def count_done(builder: Any, address: Any) -> None:
    builder.atomic_rmw("add", pointer(builder, address, _int64), ir.Constant(_int64, 1), "acq_rel")


@intrinsic_of(types.int64, types.int64)
def _num_done(builder: Any, address: Any) -> Any:
    return builder.load_atomic(pointer(builder, address, _int64), "acquire", 8)


@helper
def wait_until_done(address, wanted):
    while _num_done(address) < wanted:
        pass


@helper
def _split_row(source, target, unit, sums, width, piece):
    """One row of activations into the tiles of its block; its unit, and the sum of each group in units if pieces are groups."""
    largest = splat(np.float32(0.0))
    strange = splat(np.float32(0.0))  # becomes NaN where there is a NaN or an infinity
    zero = splat(np.float32(0.0))
    for offset in range(0, width * 4, 64):
        value = load_float32(source + offset)
        largest = maximum(maximum(value, sub(zero, value)), largest)
        strange = fma(value, zero, strange)
    most = lanes_max(largest)
    factor = splat(np.float32(0.0))
    if most > _SMALLEST:
        factor = splat(_MOST / most)
    store_scalar(unit, most / _MOST + lanes_sum(strange))
    for start in range(0, width, GROUP):
        place = target + start // piece * 2 * ROWS * piece + start % piece
        first = _split(place, place + ROWS * piece, mul(load_float32(source + start * 4), factor))
        place += 16
        second = _split(place, place + ROWS * piece, mul(load_float32(source + start * 4 + 64), factor))
        if piece == GROUP:
            store_scalar(sums + start // GROUP * 4, lanes_sum(add(first, second)))


@helper
def units_after(memory, num_rows, width):
    return memory + (num_rows + ROWS - 1) // ROWS * 2 * ROWS * width


@helper
def sums_after(units, num_rows):
    return units + (num_rows + ROWS - 1) // ROWS * ROWS * 4


@helper
def split_rows(block, x, memory, num_rows, width, piece):
    """All rows, shared out among the threads: block[1] counts those taken, block[2] those done. Returns after the last."""
    units = units_after(memory, num_rows, width)
    sums = sums_after(units, num_rows)
    while True:
        row = take_next(block + 8)
        if row >= num_rows:
            break
        target = memory + row // ROWS * 2 * ROWS * width + row % ROWS * piece
        _split_row(x + row * width * 4, target, units + row * 4, sums + row * (width // GROUP) * 4, width, piece)
        count_done(block + 16)
    wait_until_done(block + 16, num_rows)


@helper
def round_rows(block, x, memory, num_rows, width):
    """All rows as bfloat16 (rows, inputs), shared out among the threads as in split_rows. Returns after the last."""
    while True:
        row = take_next(block + 8)
        if row >= num_rows:
            break
        for index in range(0, width, LANES):
            store_bf16(memory + (row * width + index) * 2, load_float32(x + (row * width + index) * 4))
        count_done(block + 16)
    wait_until_done(block + 16, num_rows)
