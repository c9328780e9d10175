"""Linear layers with bfloat16 weights.

A row's result is bit-identical for every batch composition, because its products are added in the order of the inputs.
Activations and result are bfloat16; the result of an output head is float32. A panel contains, for every 2 inputs, a
block of weights (16 outputs, 2 inputs).
"""

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.values import Int
from inference_server.kernels.isa.vector_units import MAX_ROWS, OUTPUTS, PANEL, TOTAL_ROW, Bf16Unit
from inference_server.kernels.linear.layer import LayerArguments, OutputFormat, write_rows


def make_bf16(output: OutputFormat) -> Emit:
    """Return the function that emits the bfloat16 kernel. `output`: the format of the result."""

    def linear_bf16(code: Code, block: Int) -> None:
        layer = LayerArguments(code, block)
        totals = code.stack(MAX_ROWS * TOTAL_ROW)
        unit = code.isa.bf16_unit(code, layer.num_rows)
        panel_bytes = layer.width * (2 * PANEL)
        with layer.items(code, output) as (item, bias, out, row_bytes):
            weights = (layer.weights + item * layer.width * (2 * OUTPUTS), code.integer(1024), panel_bytes)
            multiply_rows(code, unit, layer.x, layer, weights, totals, output, bias, out, row_bytes)
        unit.release(code)

    return linear_bf16


def multiply_rows(
    code: Code,
    unit: Bf16Unit,
    x: Int,
    layer: LayerArguments,
    weights: tuple[Int, Int, Int],
    totals: Int,
    output: OutputFormat,
    bias: Int,
    out: Int,
    row_bytes: Int,
) -> None:
    """Multiply all rows by the two panels of a work item, and write the results.

    Args:
        code: The function to append to.
        unit: Emits the products.
        x: Address of the activations, (rows, inputs) bfloat16.
        layer: The layer's arguments.
        weights: Address and strides of the panels, as for Bf16Unit.multiply.
        totals: Scratch memory of 4,096 bytes.
        output: The format of the result.
        bias: Address of 32 float32.
        out: Address of the first row's result.
        row_bytes: Bytes from one row of the result to the next.
    """
    x_bytes, steps = layer.width * 2, layer.width // 32

    def multiply(first: Int, count: "Int | int", *, are_cached: bool = False) -> None:
        rows = (x + first * x_bytes, x_bytes, 64)
        unit.multiply(code, rows, weights, steps, totals, count, are_cached=are_cached)
        write_rows(code, output, totals, bias, out + first * row_bytes, row_bytes, count)

    whole = layer.num_rows // MAX_ROWS * MAX_ROWS
    unit.use_whole(code)
    with code.when(whole > 0):
        multiply(code.integer(0), MAX_ROWS)
    with code.loop(MAX_ROWS, whole, MAX_ROWS) as first:
        multiply(first, MAX_ROWS, are_cached=True)
    with code.when(whole < layer.num_rows):
        unit.use_rest(code)
        multiply(whole, layer.num_rows - whole)
