"""Emits transpositions of matrices of 4-byte elements in registers: square blocks as wide as a vector register."""

from collections.abc import Callable

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.types import INT16, INT32
from inference_server.kernels.emit.values import Int, Vector

SIZE = 16  # rows and columns of a tile
TILE_BYTES = 64 * SIZE


def transposed(rows: list[Vector]) -> list[Vector]:
    """Transpose a square matrix, whose rows are vectors of 4, 8 or 16 lanes.

    Each round combines pairs of vectors, with one instruction for each result. The first rounds swap pieces of 4 lanes or
    more. The last two interleave lanes within pieces of 4.
    """
    lanes, rows = len(rows), list(rows)
    stride = lanes // 2
    while stride >= 4:
        upper = [lane if not lane & stride else lanes + lane - stride for lane in range(lanes)]
        for first in (row for row in range(lanes) if not row & stride):
            a, b = rows[first], rows[first + stride]
            rows[first], rows[first + stride] = a.shuffled(upper, b), a.shuffled([lane + stride for lane in upper], b)
        stride //= 2
    result: list[Vector] = []
    for first in range(0, lanes, 4):
        singles = [_interleaved(rows[first + row], rows[first + row + 1], 1) for row in (0, 2)]
        result += [each for pair in zip(*singles, strict=True) for each in _interleaved(pair[0], pair[1], 2)]
    return result


def _interleaved(a: Vector, b: Vector, width: int) -> tuple[Vector, Vector]:
    """Interleave `width` lanes at a time: the first halves of both vectors' pieces of 4 lanes, then the second halves."""
    halves = []
    for half in (0, 2):
        starts = range(half, half + 2, width)
        piece = [start + other + lane for start in starts for other in (0, a.lanes) for lane in range(width)]
        halves.append(a.shuffled([base + lane for base in range(0, a.lanes, 4) for lane in piece], b))
    return halves[0], halves[1]


def _transpose_blocks(code: Code, target: Int, load_row: Callable[[Int, int, Int], Vector]) -> None:
    """Store the transpose of a tile, block by block.

    `load_row(first, row, column)` loads row `first + row` at `column`.
    """
    lanes = code.isa.lanes
    with code.loop(0, SIZE, lanes) as first, code.loop(0, SIZE, lanes) as column:
        rows = [load_row(first, row, column) for row in range(lanes)]
        for index, row in enumerate(transposed(rows)):
            code.store(row, target + column * 64 + first * 4 + 64 * index, 4 * lanes)


def transpose(code: Code, source: Int, stride: Int, target: Int) -> None:
    """Store the transpose of 16 rows of 16 elements of 4 bytes. Rows are `stride` bytes apart, and 64 in the result."""

    def load_row(first: Int, row: int, column: Int) -> Vector:
        return code.load_vector(source + (first + row) * stride + column * 4, INT32, code.isa.lanes, 2)

    _transpose_blocks(code, target, load_row)


def transpose_pairs(code: Code, source: Int, stride: Int, count: Int, target: Int) -> None:
    """Store 16 bfloat16 of each of 32 rows, `stride` bytes apart, as (16 columns, 16 pairs of rows, 2 rows).

    Rows from `count` on are zeros.
    """

    def load_half(row: Int, column: Int) -> Vector:
        values = code.load_vector(source + row * stride + column * 2, INT16, code.isa.lanes, 2).widened(INT32)
        kept: Vector = (row < count).select(values, 0)
        return kept

    def load_row(first: Int, row: int, column: Int) -> Vector:
        even = first * 2 + 2 * row
        return load_half(even, column) | (load_half(even + 1, column) << 16)

    _transpose_blocks(code, target, load_row)
