"""Emits the parts that the kernels of linear layers share: arguments, the loop over panels, and writing the results.

A work item is two panels, 32 outputs, whose weights are contiguous, in the order in which they are read. The argument
block (int64 words):

- word 0: work items taken
- word 1: rows taken, for the conversion of activations
- word 2: rows converted
- word 3: weights
- word 4: scales of int8 weights, (outputs,) float32
- word 5: activations, (rows, inputs)
- word 6: result, (rows, outputs); (rows, outputs / 2) for a gated layer
- word 7: bias, (outputs,) float32
- word 8: number of rows
- word 9: number of inputs
- word 10: number of outputs, a multiple of 32
- word 11: workspace for converted activations
- word 21: number of threads

In a gated layer, each work item consists of 16 gate outputs and the 16 matching up outputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from inference_server.kernels.emit.block_words import THREADS_WORD
from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.elements import rounded, store
from inference_server.kernels.emit.values import Float, Int, Vector
from inference_server.kernels.isa.vector_units import OUTPUTS, PANEL, TOTAL_ROW
from inference_server.kernels.rows.silu import gate_rows

# With fewer rows than _MANY_ROWS, reading the weights limits the product, and a thread takes a run of neighbouring work
# items at a time. If two threads took alternating items, each core would prefetch weights that the other one needs. An
# int4 pass with one row took 4.9 ms with alternating items and 2.8 ms with runs (AMD EPYC, Zen 4, 2 threads).
_MANY_ROWS = 32
_RUNS_PER_THREAD = 2


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The format of a layer's result.

    Attributes:
        is_bf16: True if the result is bfloat16, False for float32.
        is_rounded: True if the values of a float32 result are rounded to bfloat16.
        is_gated: True if the result is silu(gate) * up, computed from gate and up outputs.
    """

    is_bf16: bool = False
    is_rounded: bool = False
    is_gated: bool = False

    @property
    def bytes_per_output(self) -> int:
        """Bytes of the result for each output of the weights. Two outputs of a gated layer make one value of the result."""
        return (2 if self.is_bf16 else 4) // (2 if self.is_gated else 1)


class LayerArguments:
    """The words of a linear layer's argument block."""

    def __init__(self, code: Code, block: Int) -> None:
        self.block = block
        self.weights, self.scales, self.x, self.out, self.bias = (code.argument(block, index) for index in range(3, 8))
        self.num_rows, self.width, self.num_outputs = (code.argument(block, index) for index in range(8, 11))
        self.workspace = code.argument(block, 11)
        self.num_threads = code.argument(block, THREADS_WORD)

    @contextmanager
    def items(self, code: Code, output: OutputFormat) -> "Iterator[tuple[Int, Int, Int, Int]]":
        """Emit the loop over work items. With few rows, a thread takes a run of neighbouring items at a time.

        Yields the item, the address of its bias, the address of its first row's result, and the bytes of a result row.
        """
        row_bytes = self.num_outputs * output.bytes_per_output
        num_items = self.num_outputs // OUTPUTS
        num_runs = (self.num_rows < _MANY_ROWS).select(self.num_threads * _RUNS_PER_THREAD, num_items)
        num_runs = num_runs.maximum(1).minimum(num_items)
        with (
            code.work_items(self.block, num_runs) as run,
            code.loop(run * num_items // num_runs, (run + 1) * num_items // num_runs) as item,
        ):
            first = item * OUTPUTS
            yield item, self.bias + first * 4, self.out + first * output.bytes_per_output, row_bytes


def write_rows(
    code: Code,
    output: OutputFormat,
    totals: Int,
    bias: Int,
    out: Int,
    row_bytes: Int,
    count: "Int | int",
    scale: "RowScale | None" = None,
) -> None:
    """Write the results of `count` rows: sums times their scales, plus bias.

    Args:
        code: The function to append to.
        output: The format of the result.
        totals: Address of the sums, (rows, 32) float32, or in the format that `scale` reads.
        bias: Address of 32 float32.
        out: Address of the first row's result.
        row_bytes: Bytes from one row of the result to the next.
        count: Number of rows.
        scale: Converts sums to values; None if the sums are the values.
    """
    # A gated result equals that of an unfused layer, which would write its gate and up outputs as bfloat16 or float32.
    values = OutputFormat(is_rounded=output.is_bf16) if output.is_gated else output
    target, target_bytes = (totals, code.integer(TOTAL_ROW)) if output.is_gated else (out, row_bytes)
    biases = [code.load_floats(bias + 64 * half) for half in range(2)]
    factors = scale.load_factors(code) if scale else [None, None]
    with code.loop(0, count) as row:
        row_scale = scale.row_scale(code, row) if scale else None
        for half in range(2):
            place = totals + row * TOTAL_ROW + 64 * half
            value = scale.value(code, place) if scale else code.load_floats(place)
            factor = factors[half]
            if row_scale is not None:
                value = value * (row_scale if factor is None else factor * row_scale)
            value = rounded(code, value + biases[half], values.is_rounded)
            column = PANEL * half * (2 if values.is_bf16 else 4)
            store(code, value, target + row * target_bytes + column, values.is_bf16)
    if output.is_gated:
        gate_rows(code, totals, out, row_bytes, count, output.is_bf16)


class RowScale:
    """Converts the sums of fixed-point rows to values: row_scale * sum."""

    def __init__(self, row_scales: Int) -> None:
        """Create the conversion. `row_scales`: address of the first row's scale, float32."""
        self._row_scales = row_scales

    def load_factors(self, code: Code) -> "list[Vector | None]":
        """Load the factors of both panels' outputs; None if the sums contain them."""
        return [None, None]

    def row_scale(self, code: Code, row: Int) -> Float:
        """Load the scale of a row."""
        return code.load_float(self._row_scales + row * 4)

    def value(self, code: Code, place: Int) -> Vector:
        """Load the sums of 16 outputs."""
        return code.load_floats(place)
