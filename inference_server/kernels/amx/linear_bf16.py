"""Linear layers with bfloat16 weights on AMX.

A row's result is bit-identical for every batch composition: its sums are added in the order of the inputs, 32 at a
time. A work item is a panel of 32 outputs. The argument block is the same as in linear_int8.py, with activations
and result in bfloat16 and without scales and workspace. The kernel data are two sets of tile shapes: for groups of 32
rows, and for the remaining rows. The weights of a panel are, for every 32 inputs, two tiles of (16 pairs of inputs, 16
outputs, 2 inputs).
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from numba import types
from numba.core import cgutils

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.linear_int8 import OUTPUTS, W, X, int64_constant
from inference_server.kernels.simd.elements import rounded, store_bf16
from inference_server.kernels.simd.memory import argument, stack, take_next
from inference_server.kernels.simd.silu import gate_rows
from inference_server.kernels.simd.vectors import LANES, add, helper, intrinsic_of, load_float32, moved, store_float32

TILE_ROWS = 16


def _panel_product(num_tiles: int) -> Any:
    @intrinsic_of(types.void, *[types.int64] * 5)
    def multiply_panel(builder: Any, rows: Any, row_bytes: Any, weights: Any, num_steps: Any, totals: Any) -> None:
        """Multiply `num_tiles` tiles of rows by a panel, 32 inputs at a time.

        `totals` are the sums, (tile, row, 32 outputs) float32.
        """
        for tile in range(2 * num_tiles):
            amx.zero(builder, tile)
        with cgutils.for_range(builder, num_steps) as loop:
            for o in range(2):
                amx.load(builder, W + o, moved(builder, weights, (loop.index, 2048), 1024 * o), int64_constant(64))
            for b in range(num_tiles):
                amx.load(builder, X + b, moved(builder, rows, (loop.index, 64), (row_bytes, TILE_ROWS * b)), row_bytes)
                for o in range(2):
                    amx.multiply_bf16(builder, 2 * b + o, X + b, W + o)
        for b in range(num_tiles):
            for o in range(2):
                amx.store(builder, 2 * b + o, moved(builder, totals, 2048 * b + 64 * o), 128)

    return multiply_panel


_ONE, _TWO = _panel_product(1), _panel_product(2)


# Output formats: bfloat16, float32 rounded to bfloat16, float32.
NARROW, ROUNDED, WIDE = 0, 1, 2
# Output formats of a gated MLP, where 16 gate outputs and 16 up outputs become 16 results: bfloat16
# (computed from rounded sums) and float32.
GATED_NARROW, GATED_WIDE = 3, 4


@helper
def _finish(totals, bias, out, out_bytes, count, output_format):
    """Add the bias to the sums of `count` rows of a panel, and write the result."""
    for row in range(count):
        for index in range(0, OUTPUTS, LANES):
            value = add(load_float32(totals + row * 128 + index * 4), load_float32(bias + index * 4))
            if output_format == NARROW:
                store_bf16(out + row * out_bytes + index * 2, value)
            else:
                store_float32(out + row * out_bytes + index * 4, rounded(value, output_format == ROUNDED))


@helper
def _some_rows(x, row_bytes, panel, num_steps, totals, bias, out, out_bytes, count, output_format):
    """Multiply `count` rows, at most 32, by a panel and write the result. The tiles are configured for that many rows."""
    if count > TILE_ROWS:
        _TWO(x, row_bytes, panel, num_steps, totals)
    else:
        _ONE(x, row_bytes, panel, num_steps, totals)
    if output_format == GATED_NARROW:
        _finish(totals, bias, totals, 128, count, ROUNDED)
        gate_rows(totals, out, out_bytes, count, True)
    elif output_format == GATED_WIDE:
        _finish(totals, bias, totals, 128, count, WIDE)
        gate_rows(totals, out, out_bytes, count, False)
    else:
        _finish(totals, bias, out, out_bytes, count, output_format)


@helper
def configure_first(kernel_data, num_rows):
    """Configure the tiles for the first rows of `multiply_rows`. Called once before the first panel."""
    amx.configure(kernel_data + (0 if num_rows >= 32 else 64))


@helper
def multiply_rows(x, panel, kernel_data, totals, bias, out, num_rows, width, out_bytes, output_format):
    """Multiply all rows, (rows, inputs) bfloat16, by one panel, add its bias, and write the result.

    `totals` is scratch memory of 4,096 bytes.
    """
    num_steps, whole = width // 32, num_rows - num_rows % 32
    if whole and whole < num_rows:
        amx.configure(kernel_data)
    for row in range(0, whole, 32):
        place, target = x + row * width * 2, out + row * out_bytes
        _some_rows(place, width * 2, panel, num_steps, totals, bias, target, out_bytes, 32, output_format)
    if whole < num_rows:
        if whole:
            amx.configure(kernel_data + 64)
        place, target = x + whole * width * 2, out + whole * out_bytes
        _some_rows(place, width * 2, panel, num_steps, totals, bias, target, out_bytes, num_rows - whole, output_format)


def make_bf16(output_format: int) -> Any:
    """Return the bfloat16 kernel. `output_format` is NARROW, ROUNDED or GATED_NARROW."""
    # Result bytes for each output of the weights, times two, because GATED_NARROW has a single byte per output.
    out_halves = {NARROW: 4, ROUNDED: 8, GATED_NARROW: 2}[output_format]

    def linear_bf16(block):
        weights, x, out = argument(block, 3), argument(block, 5), argument(block, 6)
        bias, num_rows, width = argument(block, 7), argument(block, 8), argument(block, 9)
        num_outputs, kernel_data = argument(block, 10), argument(block, 12)
        totals = stack(4096)
        configure_first(kernel_data, num_rows)
        while True:
            panel = take_next(block)
            if panel >= num_outputs // OUTPUTS:
                break
            first = panel * OUTPUTS
            multiply_rows(
                x,
                weights + first * width * 2,
                kernel_data,
                totals,
                bias + first * 4,
                out + first * out_halves // 2,
                num_rows,
                width,
                num_outputs * out_halves // 2,
                output_format,
            )
        amx.release()

    return linear_bf16
