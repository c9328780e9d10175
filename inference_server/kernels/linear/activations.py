"""Converts rows of activations to 14-bit fixed point, as two int8 digits, for the integer kernels.

x = row_scale * (128 * high + low), where row_scale is the row's largest absolute value / (63 * 128). Digits are then from
-64 to 63, so that vpmaddubsw, which adds two products with unsigned bytes in int16, never saturates.

8 rows make a block. It contains a tile for every 32 inputs (int4) or 64 inputs (int8). A tile has 16 rows of int8: 8
rows of high digits, then 8 rows of low digits. The blocks are followed by the row scales, one float32 for each row. The
sums follow. For int4 weights, they are the sums of each row's groups of 32 inputs, float32 in units of the row scale.
For int8 weights, they are the sums of each row's high and low digits, int32.
"""

import numpy as np

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.elements import store
from inference_server.kernels.emit.types import INT8, INT32
from inference_server.kernels.emit.values import Float, Int, Vector
from inference_server.kernels.emit.waiting import wait_until_done
from inference_server.kernels.isa.vector_units import DIGIT_ROWS, GROUP

_MAX_CODE = 63 * 128
_SMALLEST = float(np.float32(1e-30))  # a row whose values are all closer to 0 is treated as zeros
_MAGIC = 12582912.0  # adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits


class SplitRows:
    """The addresses of converted rows in the workspace."""

    def __init__(self, workspace: Int, num_rows: Int, width: Int, tile_inputs: int) -> None:
        """Divide the workspace. `tile_inputs`: inputs of a tile, 32 for int4 and 64 for int8 weights."""
        padded = (num_rows + (DIGIT_ROWS - 1)) // DIGIT_ROWS * DIGIT_ROWS
        self._workspace, self._width, self._num_rows = workspace, width, num_rows
        self._scales = workspace + padded * width * 2
        self._sums = self._scales + padded * 4
        self._tile_inputs = tile_inputs
        self._sum_bytes: Int | int = width // GROUP * 4 if tile_inputs == GROUP else 8

    def block(self, first_row: Int) -> Int:
        """Return the address of the block that begins with row `first_row`, a multiple of 8."""
        return self._workspace + first_row * self._width * 2

    def row_scale(self, row: Int) -> Int:
        """Return the address of a row's scale."""
        return self._scales + row * 4

    def sums(self, row: Int) -> Int:
        """Return the address of a row's sums."""
        return self._sums + row * self._sum_bytes

    def convert(self, code: Code, block: Int, x: Int) -> None:
        """Convert all rows of x, (rows, width) float32, shared among the threads.

        Word 1 of the argument block counts rows taken, word 2 rows done. Returns when all rows are done.
        """
        with code.work_items(block + 8, self._num_rows) as row:
            target = self.block(row // DIGIT_ROWS * DIGIT_ROWS) + row % DIGIT_ROWS * self._tile_inputs
            self._convert_row(code, x + row * self._width * 4, target, row)
            code.count_done(block + 16)
        wait_until_done(code, block + 16, self._num_rows)

    def _convert_row(self, code: Code, source: Int, target: Int, row: Int) -> None:
        """Write one row's digits, scale and sums. The scale of a row with NaN or an infinity is NaN."""
        factor = self._scale(code, source, row)
        of_groups = self._tile_inputs == GROUP
        digit_sums = [code.variable(code.ints(0)) for _ in range(2)]
        with code.loop(0, self._width // GROUP) as group:
            first, rest = (group, 0) if of_groups else (group // 2, group % 2 * GROUP)
            tile = target + first * (2 * DIGIT_ROWS * self._tile_inputs) + rest
            total: Vector | None = None
            for half in range(2):
                value = code.load_floats(source + group * (4 * GROUP) + 64 * half) * factor
                whole, digits = self._store_digits(code, value, tile + 16 * half)
                total = whole if total is None else total + whole
                if not of_groups:
                    for variable, digit in zip(digit_sums, digits, strict=True):
                        variable.set(variable.get() + digit)
            if of_groups and total is not None:
                code.store(total.sum(), self.sums(row) + group * 4, 4)
        if not of_groups:
            for index, variable in enumerate(digit_sums):
                reduced = code.intrinsic("llvm.vector.reduce.add.v16i32", INT32, variable.get())
                code.builder.store(reduced, code.pointer(self.sums(row) + 4 * index, INT32), align=4)

    def _scale(self, code: Code, source: Int, row: Int) -> Vector:
        """Store a row's scale, and return the factor that maps its values to integers."""
        largest, not_finite = code.variable(code.floats(0.0)), code.variable(code.floats(0.0))
        with code.loop(0, self._width * 4, 64) as offset:
            value = code.load_floats(source + offset)
            largest.set(value.maximum(0.0 - value).maximum(largest.get()))
            not_finite.set(value.multiply_add(0.0, not_finite.get()))  # becomes NaN if a value is NaN or infinite
        most = largest.get().largest()
        code.store(most / _MAX_CODE + not_finite.get().sum(), self.row_scale(row), 4)
        factor: Float = (most > _SMALLEST).select(_MAX_CODE / most, code.number(0.0))
        return factor.splat(16)

    def _store_digits(self, code: Code, value: Vector, place: Int) -> tuple[Vector, tuple[Vector, Vector]]:
        """Round 16 values to integers and store their digits. Returns the integers as float32, and the digits as int32."""
        shifted = value + _MAGIC
        whole = shifted.bits_as(INT32) - code.floats(_MAGIC).bits_as(INT32)
        high = (whole + 64).shift_right_signed(7)
        low = whole - (high << 7)
        code.store(high.narrowed(INT8), place)
        code.store(low.narrowed(INT8), place + DIGIT_ROWS * self._tile_inputs)
        return shifted - _MAGIC, (high, low)


def round_rows(code: Code, block: Int, x: Int, workspace: Int, num_rows: Int, width: Int) -> None:
    """Round all rows of x, (rows, width) float32, to bfloat16, shared among the threads as in SplitRows.convert.

    Writes (rows, width) to the workspace. Returns when all rows are done.
    """
    with code.work_items(block + 8, num_rows) as row:
        with code.loop(0, width, 16) as index:
            place = row * width + index
            store(code, code.load_floats(x + place * 4), workspace + place * 2, True)
        code.count_done(block + 16)
    wait_until_done(code, block + 16, num_rows)
