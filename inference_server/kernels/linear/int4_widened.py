"""Linear layers with int4 weights for many rows (prompts): weights are widened to bfloat16 before they are multiplied.

A panel is widened just before it is used, so each weight is read from memory once, with 5 bits. Activations are rounded
to bfloat16; results are float32. The layout of the weights is that of int4.py.
"""

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.types import INT32
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.isa.vector_int4 import load_group
from inference_server.kernels.isa.vector_units import (
    GROUP,
    GROUP_BYTES,
    MAX_ROWS,
    OUTPUTS,
    PANEL,
    TOTAL_ROW,
)
from inference_server.kernels.linear.activations import round_rows
from inference_server.kernels.linear.bf16 import multiply_rows
from inference_server.kernels.linear.layer import LayerArguments, OutputFormat


def _pair(fours: Vector, first: int, scale: Vector, minimum: Vector) -> Vector:
    """Convert codes `first` and `first + 1` of the four in each lane to two bfloat16 weights in that lane."""
    bits = []
    for index in (first, first + 1):
        value = ((fours >> (8 * index)) & 255).to_float().multiply_add(scale, minimum)
        bits.append(value.bits_as(INT32) + 0x8000)  # rounds to nearest; weights are finite
    return (bits[0] >> 16) | (bits[1] & -65536)


def _widen(code: Code, panel: Int, groups: Int, target: Int) -> None:
    """Widen one panel to the layout of bf16.py: 1,024 bytes for each group."""
    with code.loop(0, groups) as group:
        scale, minimum, weights = load_group(code, panel + group * GROUP_BYTES, 0, PANEL)
        for quad, fours in enumerate(weights):
            for part in range(2):
                pairs = _pair(fours, 2 * part, scale, minimum)
                code.store(pairs, target + group * 1024 + 64 * (2 * quad + part), 64)


def make_int4_widened(is_gated: bool) -> Emit:
    """Return the function that emits the int4 kernel for many rows, for float32 activations and results."""
    output = OutputFormat(is_gated=is_gated)

    def linear_int4_widened(code: Code, block: Int) -> None:
        layer = LayerArguments(code, block)
        totals, wide = code.stack(MAX_ROWS * TOTAL_ROW), code.stack(layer.width * (2 * OUTPUTS))
        groups, panel_bytes = layer.width // GROUP, layer.width * (2 * PANEL)
        unit = code.isa.bf16_unit(code, layer.num_rows)
        round_rows(code, block, layer.x, layer.workspace, layer.num_rows, layer.width)
        with layer.items(code, output) as (item, bias, out, row_bytes):
            panels = layer.weights + item * groups * (2 * GROUP_BYTES)
            for panel in range(2):
                place = wide + panel_bytes * panel
                code.call("widen", _widen, panels + groups * (GROUP_BYTES * panel), groups, place)
            weights = (wide, code.integer(1024), panel_bytes)
            multiply_rows(code, unit, layer.workspace, layer, weights, totals, output, bias, out, row_bytes)
        unit.release(code)

    return linear_int4_widened
