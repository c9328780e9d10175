"""Emits the AMX instructions. A tile register holds up to 16 rows of up to 64 bytes, and is named by a constant number.

tdpbssd multiplies a tile of activations by a tile of weights, and adds the products to a tile of sums. Activations are
(16 rows, 64 inputs) int8, and sums (16 rows, 16 outputs) int32. A row of the tile of weights holds 4 consecutive inputs
of each of 16 outputs, int8. tdpbf16ps does the same for activations (16 rows, 32 inputs) bfloat16 and sums in float32.
A row of the tile of weights then holds 2 consecutive inputs of each output.
"""

from typing import TYPE_CHECKING, Any

from llvmlite import ir

from inference_server.kernels.emit.types import INT8
from inference_server.kernels.emit.values import Int, call_intrinsic

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code

TILE_ROWS = 16
NUM_TILES = 8
CONFIG_BYTES = 64
ROW_BYTES = 64


class TileInstructions:
    """Emits tile instructions. `tile` and similar arguments are register numbers from 0 to 7."""

    def configure(self, code: "Code", config: Int) -> None:
        """Set the shapes of all tiles from the 64 bytes at this address, and fill the tiles with zeros."""
        self._call(code, "ldtilecfg", code.pointer(config, INT8))

    def release(self, code: "Code") -> None:
        """Return the tiles to their initial state, so that context switches need not save them."""
        self._call(code, "tilerelease")

    def zero(self, code: "Code", tile: int) -> None:
        """Set a tile to zeros."""
        self._call(code, "tilezero", _number(tile))

    def load(self, code: "Code", tile: int, address: Int, stride: Int) -> None:
        """Load a tile from memory, with rows `stride` bytes apart."""
        self._call(code, "tileloadd64", _number(tile), code.pointer(address, INT8), stride.llvm)

    def store(self, code: "Code", tile: int, address: Int, stride: Int) -> None:
        """Store a tile to memory, with rows `stride` bytes apart."""
        self._call(code, "tilestored64", _number(tile), code.pointer(address, INT8), stride.llvm)

    def multiply_int8(self, code: "Code", total: int, rows: int, weights: int) -> None:
        """Add the int8 product of two tiles to the int32 tile `total`."""
        self._call(code, "tdpbssd", *map(_number, (total, rows, weights)))

    def multiply_bf16(self, code: "Code", total: int, rows: int, weights: int) -> None:
        """Add the bfloat16 product of two tiles to the float32 tile `total`."""
        self._call(code, "tdpbf16ps", *map(_number, (total, rows, weights)))

    def _call(self, code: "Code", name: str, *operands: Any) -> None:
        call_intrinsic(code.builder, f"llvm.x86.{name}", ir.VoidType(), *operands)


def _number(tile: int) -> Any:
    return ir.Constant(INT8, tile)


def write_config(code: "Code", place: Int, row_bytes: list[int], num_rows: "list[int] | Int") -> None:
    """Write the 64-byte operand of ldtilecfg.

    Format: Intel 64 and IA-32 Architectures Software Developer's Manual, instruction LDTILECFG.

    Args:
        code: The function to append to.
        place: Address to write to.
        row_bytes: For each register, the bytes of a row, at most 64.
        num_rows: For each register, the number of rows, at most 16; or all of them as the bytes of an int64.
    """
    columns = [code.integer(_packed(row_bytes[first : first + 4], 16)) for first in (0, 4)]
    rows = num_rows if isinstance(num_rows, Int) else code.integer(_packed(num_rows, 8))
    palette, zero = code.integer(1), code.integer(0)  # palette 1: eight registers of at most 16 rows of 64 bytes
    for index, word in enumerate((palette, zero, *columns, zero, zero, rows, zero)):
        code.store(word, place + 8 * index, 8)


def _packed(numbers: list[int], bits: int) -> int:
    """Pack small integers of `bits` bits into one, the first in the lowest bits."""
    return sum(number << (bits * index) for index, number in enumerate(numbers))
