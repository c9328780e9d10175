"""Emits matrix products on vector registers: rows of activations times panels of 16 outputs.

A unit multiplies up to 32 rows by two panels, 32 outputs. Instruction sets without tile registers use these units.
Rows and panels are divided into blocks whose sums fit into the registers. Each size of block is a separate function.
Each sum is added up in the order of the inputs, so a row's result does not depend on the other rows.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from inference_server.kernels.emit.types import INT32
from inference_server.kernels.emit.values import Int, Vector

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code, Variable

PANEL = 16  # outputs of a panel
OUTPUTS = 2 * PANEL  # outputs that a unit computes at a time
TOTAL_ROW = 4 * OUTPUTS  # bytes of a row of totals, float32 or int32
DIGIT_ROWS = 8  # rows of activations in a block of digits
GROUP = 32  # inputs of a group of int4 weights
GROUP_BYTES = 4 * PANEL + GROUP * PANEL // 2  # a panel's scales, minima and codes of one group
MAX_ROWS = 32  # rows that a unit multiplies at a time


def row_blocks(
    code: "Code", count: "Int | int", rows: tuple[int, ...], emit: Callable[[Int, int], None], limit: int
) -> None:
    """Cover `count` rows with blocks, the largest first. Emits each block with emit(first row, number of rows).

    `limit`: the largest possible `count`.
    """
    first: Int | int = 0
    for size in sorted(rows, reverse=True):
        if size > (count if isinstance(count, int) else limit):
            continue
        stop = first + (count - first) // size * size
        with code.loop(first, stop, size) as row:
            emit(row, size)
        if isinstance(stop, int) and stop == count:
            return
        first = stop


class Bf16Unit:
    """Products of bfloat16 rows with bfloat16 weights, in float32.

    A panel contains, for every 32 inputs, a block of weights (16 pairs of inputs, 16 outputs, 2 inputs), 1,024 bytes.
    """

    def __init__(self, code: "Code", num_rows: "Int | int") -> None:
        """Prepare the unit. `num_rows`: number of all rows that the kernel will multiply."""

    def use_whole(self, code: "Code") -> None:
        """Prepare for `multiply` with 32 rows at a time."""

    def use_rest(self, code: "Code") -> None:
        """Prepare for `multiply` with the rows that remain after groups of 32."""

    def release(self, code: "Code") -> None:
        """Release the tile registers, if the unit uses any. This unit uses none."""

    def multiply(
        self,
        code: "Code",
        x: tuple[Int, "Int | int", "Int | int"],
        weights: tuple[Int, "Int | int", "Int | int"],
        num_steps: "Int | int",
        out: Int,
        count: "Int | int",
        *,
        adds: bool = False,
        are_cached: bool = False,
    ) -> None:
        """Write or add the products of `count` rows with 32 outputs to `out`, (count, 32) float32.

        Args:
            code: The function to append to.
            x: Address of the first row, bytes from row to row, and bytes from step to step of 32 inputs.
            weights: Address of the first panel, bytes from step to step, and bytes from the first to the second panel.
            num_steps: Inputs / 32.
            out: Address of the result, rows 128 bytes apart.
            count: 1 to 32.
            adds: Add to the values in `out`.
            are_cached: The weights are in the core's cache. This only changes the speed.
        """
        tiling = code.isa.cached_bf16_tiling if are_cached else code.isa.bf16_tiling
        numbers = [each if isinstance(each, Int) else code.integer(each) for each in (*x, *weights, num_steps)]

        def block(row: Int, size: int) -> None:
            panels = 1 if size == 1 else tiling.panels
            for panel in range(0, 2, panels):
                start, stride, step, panel_address, panel_step, panel_bytes, steps = numbers
                code.call(
                    f"bf16_{size}x{panels}{'_adds' if adds else ''}",
                    lambda inner, *values: _bf16_block(inner, size, panels, adds, *values),
                    start + row * stride,
                    stride,
                    step,
                    panel_address + panel_bytes * panel,
                    panel_step,
                    panel_bytes,
                    steps,
                    out + row * TOTAL_ROW + 4 * PANEL * panel,
                )

        row_blocks(code, count, tiling.rows, block, MAX_ROWS)


def _bf16_block(code: "Code", num_rows: int, num_panels: int, adds: bool, *values: Int) -> None:
    x, x_stride, x_step, weights, weights_step, panel_bytes, num_steps, out = values
    lanes, parts = code.isa.lanes, range(0, PANEL, code.isa.lanes)
    cells = [(row, panel, part) for row in range(num_rows) for panel in range(num_panels) for part in parts]
    places = [out + (TOTAL_ROW * row + 64 * panel + 4 * part) for row, panel, part in cells]
    starts = [code.load_floats(place, lanes) if adds else code.floats(0.0, lanes) for place in places]
    at_once = code.isa.words_at_once
    # Unroll a whole step only in these cases. In the others, LLVM would load so many of the step's values early that 16
    # registers could not hold the sums, and would spill them to memory.
    is_whole = num_rows == 1 or at_once > 1
    pairs_at_once = 16 if is_whole else 2
    totals = [code.variable(start) for start in starts] if is_whole else None
    if not is_whole and not adds:
        for place, start in zip(places, starts, strict=True):
            code.store(start, place, 4)
    with code.loop(0, num_steps) as step:
        # Each step has separate sums, so that the CPU can compute several steps at the same time. In a single sum over
        # all steps, each addition would wait for the one before. The order of additions is the same for every number of
        # rows, so a row's result is bit-identical.
        sums = {cell: code.variable(code.floats(0.0, lanes)) for cell in cells}
        with nullcontext(code.integer(0)) if is_whole else code.loop(0, 16, pairs_at_once) as first:
            panels, rows = weights + step * weights_step + first * 64, x + step * x_step + first * 4
            for pair in range(0, pairs_at_once, at_once):
                inputs = [
                    code.isa.load_pairs(code, rows + x_stride * row + 4 * pair, at_once, lanes)
                    for row in range(num_rows)
                ]
                for word in range(at_once):
                    place = panels + 64 * (pair + word)
                    _multiply_pair(code, place, panel_bytes, [words[word] for words in inputs], sums)
        for index, place in enumerate(places):
            value = sums[cells[index]].get()
            if totals:
                totals[index].set(totals[index].get() + value)
            else:
                code.store(code.load_floats(place, lanes) + value, place, 4)
    if totals:
        for total, place in zip(totals, places, strict=True):
            code.store(total.get(), place, 4)


def _multiply_pair(
    code: "Code", panels: Int, panel_bytes: Int, inputs: list[Any], sums: "dict[tuple[int, int, int], Variable]"
) -> None:
    """Add the products of one pair of inputs to the sums of each row, panel, and part of a panel."""
    isa, lanes = code.isa, code.isa.lanes
    pairs: dict[tuple[int, int], Any] = {}
    for row, panel, part in sums:
        if row == 0:
            place = panels + panel_bytes * panel + 4 * part
            pairs[panel, part] = isa.prepare_pairs(code, code.load_vector(place, INT32, lanes, 4 * lanes))
    for (row, panel, part), total in sums.items():
        total.set(isa.multiply_pairs(code, total.get(), pairs[panel, part], inputs[row]))


class Int8Unit:
    """Products of fixed-point rows (two int8 digits) with int8 codes, in int32.

    A panel contains, for every 4 inputs, a block of codes (16 outputs, 4 inputs), 64 bytes. If the instruction set has
    `unsigned_codes`, each code is stored as code + 128.
    """

    max_rows = DIGIT_ROWS  # rows that the unit multiplies at a time, whole blocks of digits

    def __init__(self, code: "Code") -> None:
        """Allocate the memory that the unit needs on the stack. This unit needs none."""

    def use(self, code: "Code") -> None:
        """Configure the tile registers for `multiply`, if the unit uses any. This unit uses none."""

    def release(self, code: "Code") -> None:
        """Release the tile registers that `use` configured. This unit uses none."""

    def multiply(self, code: "Code", rows: Int, width: Int, codes: Int, sums: Int, totals: Int, count: Int) -> None:
        """Write the sums of the products of up to `max_rows` rows with 32 outputs.

        Args:
            code: The function to append to.
            rows: Address of consecutive blocks of digits (activations.py) with 64 inputs per tile.
            width: Inputs, a multiple of 64.
            codes: Address of the codes of two panels.
            sums: Address of the sums of each row's high and low digits, (rows, 2) int32.
            totals: Address of the result, for each block of digits (2 digits, 8 rows, 32 outputs) int32.
            count: Rows, from 1 to `max_rows`.
        """
        tiling = code.isa.int8_tiling

        def block(row: Int, size: int) -> None:
            panels = 1 if size == 1 else tiling.panels
            for panel in range(0, 2, panels):
                code.call(
                    f"int8_{size}x{panels}",
                    lambda inner, *values: _int8_block(inner, size, panels, *values),
                    rows + row * 64,
                    codes + width * (PANEL * panel),
                    width,
                    sums + row * 8,
                    totals + row * TOTAL_ROW + 64 * panel,
                )

        row_blocks(code, count, tiling.rows, block, DIGIT_ROWS)


def _load_codes(code: "Code", place: Int) -> list[Vector]:
    """Load the codes of `codes_at_once` times 4 inputs, of as many outputs as a vector register has lanes."""
    lanes = code.isa.lanes
    return [code.load_vector(place + 64 * index, INT32, lanes, 4 * lanes) for index in range(code.isa.codes_at_once)]


def _int8_block(code: "Code", num_rows: int, num_panels: int, *values: Int) -> None:
    rows, codes, width, digit_sums, totals = values
    isa, lanes = code.isa, code.isa.lanes
    outputs = [(panel, part) for panel in range(num_panels) for part in range(0, 16, lanes)]
    # Unsigned codes are 128 too large, so the sums begin with -128 times the sum of the digits.
    starts = {
        (row, digit): code.load_splat(digit_sums + (8 * row + 4 * digit), INT32, lanes) * -128
        if isa.unsigned_codes
        else code.ints(0, lanes)
        for row in range(num_rows)
        for digit in range(2)
    }
    sums = {(*key, *output): code.variable(start) for key, start in starts.items() for output in outputs}
    with code.loop(0, width // 64) as step:
        panel_step, row_step = codes + step * 1024, rows + step * 1024
        for quad in range(0, 16, isa.codes_at_once):
            if quad % isa.words_at_once == 0:
                loaded = {
                    (row, digit): isa.load_words(
                        code, row_step + (512 * digit + 64 * row + 4 * quad), isa.words_at_once, lanes
                    )
                    for row, digit in starts
                }
            first = quad % isa.words_at_once
            inputs = {key: words[first : first + isa.codes_at_once] for key, words in loaded.items()}
            # If `codes_at_once` is above 1, codes occupy many registers, so vectors of outputs are computed one by one.
            for group in [outputs] if isa.codes_at_once == 1 else [[output] for output in outputs]:
                places = [panel_step + width * (PANEL * panel) + (64 * quad + 4 * part) for panel, part in group]
                weights = [_load_codes(code, place) for place in places]
                for key, digits in inputs.items():
                    for output, codes_of_output in zip(group, weights, strict=True):
                        variable = sums[(*key, *output)]
                        operands = (codes_of_output, digits)
                        variable.set(isa.multiply_codes(code, variable.get(), *operands, are_nibbles=False))
                if len(group) < len(outputs):
                    panel_step = isa.after(code, panel_step, [sums[(*key, *group[0])].get() for key in inputs])
    for (row, digit, panel, part), total in sums.items():
        code.store(total.get(), totals + (1024 * digit + TOTAL_ROW * row + 64 * panel + 4 * part), 4)
