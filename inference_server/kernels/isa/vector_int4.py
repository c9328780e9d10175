"""Emits matrix products with int4 weights on vector registers. See vector_units.py."""

from typing import TYPE_CHECKING

from inference_server.kernels.emit.types import FLOAT, HALF, INT8, INT32
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.isa.vector_units import DIGIT_ROWS, GROUP, GROUP_BYTES, TOTAL_ROW, row_blocks

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class Int4Unit:
    """Products of fixed-point rows (two int8 digits) with int4 weights, in float32, scaled group by group.

    A panel contains, for each group of 32 inputs, 16 scales and 16 minima in float16, then 256 bytes of codes
    (linear/int4.py).
    """

    def __init__(self, code: "Code", num_rows: Int, width: Int) -> None:
        """Prepare the unit. `num_rows`: number of all rows that the kernel will multiply. `width`: number of inputs."""

    def release(self, code: "Code") -> None:
        """Release the tile registers, if the unit uses any. This unit uses none."""

    def use_panels(self, code: "Code", panels: Int) -> None:
        """Prepare for `multiply` with the two panels at this address."""

    def multiply(
        self, code: "Code", rows: Int, panels: Int, sums: Int, num_groups: Int, totals: Int, count: Int
    ) -> None:
        """Write the products of up to 8 rows with 32 outputs, in units of the row scale.

        Args:
            code: The function to append to.
            rows: Address of a block of digits (activations.py) with 32 inputs per tile.
            panels: Address of two panels.
            sums: Address of the sums of each row's groups, (8, groups) float32.
            num_groups: Inputs / 32.
            totals: Address of the result, (8 rows, 32 outputs) float32.
            count: Rows, from 1 to 8.
        """
        self.multiply_blocks(code, rows, panels, sums, num_groups, totals, count, DIGIT_ROWS)

    def multiply_blocks(
        self, code: "Code", rows: Int, panels: Int, sums: Int, num_groups: Int, totals: Int, count: Int, limit: int
    ) -> None:
        """Multiply as in `multiply`, on vector registers. `limit`: the largest possible `count`."""

        def block(row: Int, size: int) -> None:
            for panel in range(2):
                code.call(
                    f"int4_{size}",
                    lambda inner, *values: _int4_block(inner, size, *values),
                    rows + row * GROUP,
                    panels + num_groups * (GROUP_BYTES * panel),
                    num_groups,
                    sums + row * num_groups * 4,
                    totals + row * TOTAL_ROW + 64 * panel,
                )

        row_blocks(code, count, code.isa.int4_tiling.rows, block, limit)


def _int4_block(code: "Code", num_rows: int, *values: Int) -> None:
    rows, panel, num_groups, group_sums, totals = values
    lanes = code.isa.lanes
    parts = range(0, 16, lanes)
    results = {(row, part): code.variable(code.floats(0.0, lanes)) for row in range(num_rows) for part in parts}
    with code.loop(0, num_groups) as group:
        record, digits = panel + group * GROUP_BYTES, rows + group * (2 * DIGIT_ROWS * GROUP)
        done: list[Vector] = []
        for part in parts:
            record = code.isa.after(code, record, done)
            done = []
            scale, minimum, weights = load_group(code, record, part, lanes)
            for row in range(num_rows):
                # Each digit has its own sum, so that the CPU adds to both at the same time.
                high, low = (
                    code.isa.multiply_codes(
                        code,
                        code.ints(0, lanes),
                        weights,
                        code.isa.load_words(code, digits + GROUP * (row + DIGIT_ROWS * digit), 8, lanes),
                        are_nibbles=True,
                    )
                    for digit in range(2)
                )
                value = ((high << 7) + low).to_float().multiply_add(scale, results[row, part].get())
                group_sum = code.load_splat(group_sums + group * 4 + num_groups * (4 * row), FLOAT, lanes)
                results[row, part].set(group_sum.multiply_add(minimum, value))
                done.append(results[row, part].get())
    for (row, part), result in results.items():
        code.store(result.get(), totals + (TOTAL_ROW * row + 4 * part), 4)


def load_group(code: "Code", record: Int, part: int, lanes: int) -> tuple[Vector, Vector, list[Vector]]:
    """Load the weights of one group for the outputs `part` to `part + lanes - 1` of a panel.

    Returns:
        Scales and minima, float32, and 8 vectors of int32 lanes with the codes of 4 inputs each.
    """
    scale, minimum = (
        code.load_vector(record + (start + 2 * part), HALF, lanes, 2 * lanes).widened(FLOAT) for start in (0, 32)
    )
    packed = [code.load_vector(record + (64 + 64 * piece + 4 * part), INT32, lanes, 4 * lanes) for piece in range(4)]
    low = [piece & 0x0F0F0F0F for piece in packed]
    # Bytes are shifted, not words: Arm has such shifts, and they need no mask.
    high = [(piece.bits_as(INT8, 4 * lanes) >> 4).bits_as(INT32, lanes) for piece in packed]
    return scale, minimum, [*low, *high]
