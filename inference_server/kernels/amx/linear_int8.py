"""Linear layers with int8 weights on the tile registers of AMX, and what those with int4 weights share with them.

Products of whole numbers are exact: an output has the same bits in whatever company its row is computed, on however many
threads. Weights lie in strips of 32 outputs, each in the order in which it is read. A block of int64 tells the work:

 0 strips taken, 1 rows taken, 2 rows done, 3 weights, 4 scales, 5 activations (rows, inputs) float32, 6 result (rows,
 outputs) float32, 7 bias float32, 8 rows, 9 inputs, 10 outputs, 11 memory for the split rows, 12 shapes of the tiles
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import ROWS, split_rows, units_after
from inference_server.kernels.simd.silu import gate_rows
from inference_server.kernels.simd.vectors import (
    argument,
    intrinsic_of,
    moved,
    multiply_add,
    pointer,
    splatted,
    stack,
    take_next,
)

OUTPUTS = 32  # of a strip: two tiles
_int64 = ir.IntType(64)
_floats, _ints = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)
# Which tile is which: totals from 0 on, activations from 4, weights from 6.
X, W = 4, 6


def number(value: int) -> Any:
    return ir.Constant(_int64, value)


def ints_at(builder: Any, address: Any) -> Any:
    return builder.load(pointer(builder, address, _ints), align=4)


def finish(split: bool) -> Any:
    """Makes: `count` rows of a strip, times their units and the strip's scales, plus its bias, to their places.

    Totals: (row, 32 outputs), where `split` int32 and the low parts ROWS rows after the high ones, else float32.
    """

    @intrinsic_of(types.void, *[types.int64] * 7)
    def finish_rows(
        builder: Any, totals: Any, units: Any, scales: Any, bias: Any, out: Any, out_stride: Any, count: Any
    ) -> None:
        def floats_at(address: Any) -> Any:
            return builder.load(pointer(builder, address, _floats), align=4)

        halves = [(floats_at(moved(builder, bias, 64 * o)), moved(builder, scales, 64 * o)) for o in range(2)]
        factors = [floats_at(place) if split else None for _, place in halves]
        with cgutils.for_range(builder, count) as loop:
            unit = builder.load(pointer(builder, moved(builder, units, (loop.index, 4)), ir.FloatType()), align=4)
            row = builder.add(out, builder.mul(loop.index, out_stride))
            for o in range(2):
                place, factor = moved(builder, totals, (loop.index, 128), 64 * o), splatted(builder, unit)
                if split:
                    high = builder.sitofp(ints_at(builder, place), _floats)
                    low = builder.sitofp(ints_at(builder, moved(builder, place, ROWS * 128)), _floats)
                    value = multiply_add(builder, high, ir.Constant(_floats, [128.0] * 16), low)
                    factor = builder.fmul(factor, factors[o])
                else:
                    value = floats_at(place)
                value = builder.fadd(builder.fmul(value, factor), halves[o][0])
                builder.store(value, pointer(builder, moved(builder, row, 64 * o), _floats), align=4)

    return finish_rows


_finish = finish(True)


def _int8_strip(num_blocks: int) -> Any:
    @intrinsic_of(types.void, *[types.int64] * 5)
    def multiply_strip(builder: Any, rows: Any, width: Any, codes: Any, num_steps: Any, totals: Any) -> None:
        """`num_blocks` blocks of rows times a strip, 64 inputs at a time. Totals: (block, row, 32 outputs) float32."""
        for tile in range(2 * num_blocks):
            amx.zero(builder, tile)
        with cgutils.for_range(builder, num_steps) as loop:
            for o in range(2):
                amx.load(builder, W + o, moved(builder, codes, (loop.index, 2048), 1024 * o), number(64))
            for b in range(num_blocks):
                amx.load(builder, X + b, moved(builder, rows, (loop.index, 1024), (width, 2 * ROWS * b)), number(64))
                for o in range(2):
                    amx.multiply(builder, 2 * b + o, X + b, W + o)
        for b in range(num_blocks):
            for o in range(2):
                amx.store(builder, 2 * b + o, moved(builder, totals, 2048 * b + 64 * o), 128)

    return multiply_strip


_INT8_ONE, _INT8_TWO = _int8_strip(1), _int8_strip(2)


def make_int8(is_gated: bool) -> Any:
    """`is_gated`: of each strip's outputs 16 are gates and 16 their ups, and the result has half as many columns.

    Weights: for each strip and 64 inputs two tiles of codes; scales: (outputs,) float32."""

    def linear_int8(block):
        weights, scales, x, out = (
            argument(block, 3),
            argument(block, 4),
            argument(block, 5),
            argument(block, 6),
        )
        bias, num_rows, width = argument(block, 7), argument(block, 8), argument(block, 9)
        num_outputs, memory = argument(block, 10), argument(block, 11)
        totals, finished = stack(4096), stack(ROWS * 128)
        out_bytes = num_outputs * 2 if is_gated else num_outputs * 4
        units = units_after(memory, num_rows, width)
        split_rows(block, x, memory, num_rows, width, 64)
        amx.configure(argument(block, 12))
        while True:
            strip = take_next(block)
            if strip >= num_outputs // OUTPUTS:
                break
            codes, place = weights + strip * OUTPUTS * width, strip * OUTPUTS * 4
            for first in range(0, num_rows, 2 * ROWS):
                rows = memory + first * 2 * width
                if num_rows - first > ROWS:
                    _INT8_TWO(rows, width, codes, width // 64, totals)
                else:
                    _INT8_ONE(rows, width, codes, width // 64, totals)
                for row in range(first, min(first + 2 * ROWS, num_rows), ROWS):
                    count, target = min(num_rows - row, ROWS), out + row * out_bytes
                    rows_totals, rows_units = totals + (row - first) * 256, units + row * 4
                    if is_gated:
                        _finish(rows_totals, rows_units, scales + place, bias + place, finished, 128, count)
                        gate_rows(finished, target + place // 2, out_bytes, count, False)
                    else:
                        _finish(rows_totals, rows_units, scales + place, bias + place, target + place, out_bytes, count)
        amx.release()

    return linear_int8
