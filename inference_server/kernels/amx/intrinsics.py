"""The AMX instructions as LLVM code. A tile register holds up to 16 rows of 64 bytes; its number is part of an instruction.

tdpbssd multiplies a tile of activations (16 rows, 64 inputs) int8 by a tile of weights and adds the products to a tile of
(16 rows, 16 outputs) int32. A row of the tile of weights holds 4 consecutive inputs of each of 16 outputs, int8.
tdpbf16ps does the same for (16 rows, 32 inputs) bfloat16, with 2 consecutive inputs of each output, into float32.

Emitting functions take the LLVM builder first. `tile` and similar arguments are register numbers from 0 to 7.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from inference_server.kernels.simd.vectors import intrinsic_of

_tile, _address, _int64 = ir.IntType(8), ir.IntType(8).as_pointer(), ir.IntType(64)


def _call(builder: Any, name: str, *arguments: Any) -> None:
    signature = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}"), arguments)


def _number(tile: int) -> Any:
    return ir.Constant(_tile, tile)


def zero(builder: Any, tile: int) -> None:
    """Set a tile to zeros."""
    _call(builder, "tilezero", _number(tile))


def load(builder: Any, tile: int, address: Any, stride: Any) -> None:
    """Load a tile from `address`, whose rows are `stride` bytes apart (int64 values)."""
    _call(builder, "tileloadd64", _number(tile), builder.inttoptr(address, _address), stride)


def store(builder: Any, tile: int, address: Any, stride: Any) -> None:
    """Store a tile to `address`, with rows `stride` bytes apart: an int64 value or a number."""
    where = builder.inttoptr(address, _address)
    stride = ir.Constant(_int64, stride) if isinstance(stride, int) else stride
    _call(builder, "tilestored64", _number(tile), where, stride)


def multiply(builder: Any, total: int, rows: int, weights: int) -> None:
    """Add the int8 product of two tiles to the int32 tile `total`."""
    _call(builder, "tdpbssd", _number(total), _number(rows), _number(weights))


def multiply_bf16(builder: Any, total: int, rows: int, weights: int) -> None:
    """Add the bfloat16 product of two tiles to the float32 tile `total`."""
    _call(builder, "tdpbf16ps", _number(total), _number(rows), _number(weights))


@intrinsic_of(types.void, types.int64)
def configure(builder: Any, address: Any) -> None:
    """Set the shapes of all tiles from the 64 bytes at `address` (see tile_config.py)."""
    _call(builder, "ldtilecfg", builder.inttoptr(address, _address))


@intrinsic_of(types.void)
def release(builder: Any) -> None:
    """Return the tiles to their initial state, so that the system need not save them."""
    _call(builder, "tilerelease")
