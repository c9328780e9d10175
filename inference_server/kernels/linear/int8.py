"""Linear layers with int8 weights.

Products and sums of integers are exact, so a row's result is bit-identical for every batch composition and any number of
threads. All threads together first convert the activations to fixed point (activations.py). A panel contains the codes
of 16 outputs: a block (16 outputs, 4 inputs) for every 4 inputs.
"""

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.types import INT32
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.isa.vector_units import DIGIT_ROWS, OUTPUTS, TOTAL_ROW
from inference_server.kernels.linear.activations import SplitRows
from inference_server.kernels.linear.layer import LayerArguments, OutputFormat, RowScale, write_rows
from inference_server.kernels.linear.workspace import INT8_TILE_INPUTS

_DIGIT_BYTES = DIGIT_ROWS * TOTAL_ROW  # bytes from the sums of the high digits to those of the low digits


class _DigitScale(RowScale):
    """Converts the sums of both digits to values: row_scale * scale * (128 * high + low)."""

    def __init__(self, row_scales: Int, scales: Int) -> None:
        super().__init__(row_scales)
        self._scales = scales

    def load_factors(self, code: Code) -> "list[Vector | None]":
        return [code.load_floats(self._scales + 64 * half) for half in range(2)]

    def value(self, code: Code, place: Int) -> Vector:
        high, low = (code.load_vector(place + offset, INT32, 16, 4).to_float() for offset in (0, _DIGIT_BYTES))
        return high.multiply_add(128.0, low)


def make_int8(is_gated: bool) -> Emit:
    """Return the function that emits the int8 kernel, for float32 activations and results."""
    output = OutputFormat(is_gated=is_gated)

    def linear_int8(code: Code, block: Int) -> None:
        layer = LayerArguments(code, block)
        unit = code.isa.int8_unit(code)
        totals = code.stack(unit.max_rows * 2 * TOTAL_ROW)
        rows = SplitRows(layer.workspace, layer.num_rows, layer.width, INT8_TILE_INPUTS)
        rows.convert(code, block, layer.x)
        unit.use(code)
        with layer.items(code, output) as (item, bias, out, row_bytes):
            codes = layer.weights + item * layer.width * OUTPUTS
            scales = layer.scales + item * (4 * OUTPUTS)
            with code.loop(0, layer.num_rows, unit.max_rows) as first:
                count = (layer.num_rows - first).minimum(unit.max_rows)
                unit.multiply(code, rows.block(first), layer.width, codes, rows.sums(first), totals, count)
                with code.loop(0, count, DIGIT_ROWS) as block_row:
                    row, block_totals = first + block_row, totals + block_row * (2 * TOTAL_ROW)
                    scale = _DigitScale(rows.row_scale(row), scales)
                    target, block_count = out + row * row_bytes, (count - block_row).minimum(DIGIT_ROWS)
                    write_rows(code, output, block_totals, bias, target, row_bytes, block_count, scale)
        unit.release(code)

    return linear_int8
