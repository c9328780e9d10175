"""Linear layers with int8 weights on AMX, and the parts that they share with int4 weights.

Products and sums of integers are exact, so a row's result is bit-identical for every batch composition and any number
of threads. A work item is a panel of 32 outputs, whose weights are contiguous, in the order in which they are read.
Before the first panel, all threads together convert the activations to 15-bit fixed point (activations.py).

The argument block (int64 words):

- word 0: panels taken
- word 1: rows taken, for the conversion
- word 2: rows converted
- word 3: weights
- word 4: scales
- word 5: activations, (rows, inputs) float32
- word 6: result, (rows, outputs) float32
- word 7: bias, (outputs,) float32
- word 8: number of rows
- word 9: number of inputs
- word 10: number of outputs, whole panels
- word 11: workspace for the converted rows
- word 12: kernel data: the tile shapes (tile_config.py)
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import ROWS, row_scales_after, split_rows
from inference_server.kernels.simd.memory import argument, stack, take_next
from inference_server.kernels.simd.silu import gate_rows
from inference_server.kernels.simd.vectors import intrinsic_of, moved, multiply_add, pointer, splatted

OUTPUTS = 32  # outputs of a panel: two tiles
_int64 = ir.IntType(64)
_floats, _ints = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)
# Tile registers: 0 to 3 are sums, 4 and 5 (X) activations, 6 and 7 (W) weights.
X, W = 4, 6


def int64_constant(value: int) -> Any:
    """Return an int64 constant of the generated code."""
    return ir.Constant(_int64, value)


def ints_at(builder: Any, address: Any) -> Any:
    """Load 16 consecutive int32."""
    return builder.load(pointer(builder, address, _ints), align=4)


def finish(has_digits: bool) -> Any:
    """Return the function that scales the sums of `count` rows of a panel, adds the bias, and writes the result.

    result = row_scale * (scale * sum) + bias. If `has_digits`, sums are (row, 32 outputs) int32: the sums of the low
    digits are ROWS rows after the sums of the high digits. Otherwise sums are float32 and already scaled.
    """

    @intrinsic_of(types.void, *[types.int64] * 7)
    def finish_rows(
        builder: Any, totals: Any, row_scales: Any, scales: Any, bias: Any, out: Any, out_stride: Any, count: Any
    ) -> None:
        def floats_at(address: Any) -> Any:
            return builder.load(pointer(builder, address, _floats), align=4)

        halves = [(floats_at(moved(builder, bias, 64 * o)), moved(builder, scales, 64 * o)) for o in range(2)]
        factors = [floats_at(place) if has_digits else None for _, place in halves]
        with cgutils.for_range(builder, count) as loop:
            row_scale = builder.load(
                pointer(builder, moved(builder, row_scales, (loop.index, 4)), ir.FloatType()), align=4
            )
            row = builder.add(out, builder.mul(loop.index, out_stride))
            for o in range(2):
                place, factor = moved(builder, totals, (loop.index, 128), 64 * o), splatted(builder, row_scale)
                if has_digits:
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


def _panel_product(num_blocks: int) -> Any:
    @intrinsic_of(types.void, *[types.int64] * 5)
    def multiply_panel(builder: Any, rows: Any, width: Any, codes: Any, num_steps: Any, totals: Any) -> None:
        """Multiply `num_blocks` blocks of rows by a panel, 64 inputs at a time.

        `totals` are the sums, (block, digit, row, 32 outputs) int32.
        """
        for tile in range(2 * num_blocks):
            amx.zero(builder, tile)
        with cgutils.for_range(builder, num_steps) as loop:
            for o in range(2):
                amx.load(builder, W + o, moved(builder, codes, (loop.index, 2048), 1024 * o), int64_constant(64))
            for b in range(num_blocks):
                amx.load(
                    builder, X + b, moved(builder, rows, (loop.index, 1024), (width, 2 * ROWS * b)), int64_constant(64)
                )
                for o in range(2):
                    amx.multiply(builder, 2 * b + o, X + b, W + o)
        for b in range(num_blocks):
            for o in range(2):
                amx.store(builder, 2 * b + o, moved(builder, totals, 2048 * b + 64 * o), 128)

    return multiply_panel


_INT8_ONE, _INT8_TWO = _panel_product(1), _panel_product(2)


def make_int8(is_gated: bool) -> Any:
    """Return the int8 kernel.

    Weights are, for each panel and 64 inputs, two tiles of codes; scales are (outputs,) float32. If `is_gated`, 16
    outputs of each panel are gate outputs and 16 the matching up outputs, and the result has half as many columns.
    """

    def linear_int8(block):
        weights, scales, x, out = (
            argument(block, 3),
            argument(block, 4),
            argument(block, 5),
            argument(block, 6),
        )
        bias, num_rows, width = argument(block, 7), argument(block, 8), argument(block, 9)
        num_outputs, workspace = argument(block, 10), argument(block, 11)
        totals, finished = stack(4096), stack(ROWS * 128)
        out_bytes = num_outputs * 2 if is_gated else num_outputs * 4
        row_scales = row_scales_after(workspace, num_rows, width)
        split_rows(block, x, workspace, num_rows, width, 64)
        amx.configure(argument(block, 12))
        while True:
            panel = take_next(block)
            if panel >= num_outputs // OUTPUTS:
                break
            codes, place = weights + panel * OUTPUTS * width, panel * OUTPUTS * 4
            for first in range(0, num_rows, 2 * ROWS):
                rows = workspace + first * 2 * width
                if num_rows - first > ROWS:
                    _INT8_TWO(rows, width, codes, width // 64, totals)
                else:
                    _INT8_ONE(rows, width, codes, width // 64, totals)
                for row in range(first, min(first + 2 * ROWS, num_rows), ROWS):
                    count, target = min(num_rows - row, ROWS), out + row * out_bytes
                    rows_totals, scales_of_rows = totals + (row - first) * 256, row_scales + row * 4
                    if is_gated:
                        _finish(rows_totals, scales_of_rows, scales + place, bias + place, finished, 128, count)
                        gate_rows(finished, target + place // 2, out_bytes, count, False)
                    else:
                        _finish(
                            rows_totals, scales_of_rows, scales + place, bias + place, target + place, out_bytes, count
                        )
        amx.release()

    return linear_int8
