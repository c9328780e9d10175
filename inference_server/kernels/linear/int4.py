"""Linear layers with int4 weights.

A weight is code * scale + minimum, and every group of 32 inputs has its own scale and minimum. The integer sum of a
group is therefore scaled before the next group begins:
result += sum * scale + (sum of the group's activations) * minimum.
The conversion of activations is the same as in int8.py, with tiles of 32 inputs. A panel has a record of 320 bytes for
each group. The record contains 16 scales and 16 minima in float16, then four pieces of 64 bytes of codes. A piece has 4
bytes for each of 16 outputs. The low nibbles are the codes of 4 consecutive inputs in the first half of the group. The
high nibbles are those of the matching inputs in the second half.
"""

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.values import Int
from inference_server.kernels.isa.vector_units import DIGIT_ROWS, GROUP, GROUP_BYTES, TOTAL_ROW
from inference_server.kernels.linear.activations import SplitRows
from inference_server.kernels.linear.layer import LayerArguments, OutputFormat, RowScale, write_rows
from inference_server.kernels.linear.workspace import INT4_TILE_INPUTS


def make_int4(is_gated: bool) -> Emit:
    """Return the function that emits the int4 kernel, for float32 activations and results, without rounding weights."""
    output = OutputFormat(is_gated=is_gated)

    def linear_int4(code: Code, block: Int) -> None:
        layer = LayerArguments(code, block)
        totals = code.stack(DIGIT_ROWS * TOTAL_ROW)
        unit = code.isa.int4_unit(code, layer.num_rows, layer.width)
        groups = layer.width // GROUP
        rows = SplitRows(layer.workspace, layer.num_rows, layer.width, INT4_TILE_INPUTS)
        rows.convert(code, block, layer.x)
        with layer.items(code, output) as (item, bias, out, row_bytes):
            panels = layer.weights + item * groups * (2 * GROUP_BYTES)
            unit.use_panels(code, panels)
            with code.loop(0, layer.num_rows, DIGIT_ROWS) as first:
                count = (layer.num_rows - first).minimum(DIGIT_ROWS)
                unit.multiply(code, rows.block(first), panels, rows.sums(first), groups, totals, count)
                scale = RowScale(rows.row_scale(first))
                write_rows(code, output, totals, bias, out + first * row_bytes, row_bytes, count, scale)
        unit.release(code)

    return linear_int4
