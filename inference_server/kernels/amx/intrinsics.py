"""The tile registers of AMX as intrinsics: each register is 16 rows of 64 bytes, chosen by a number in the code.

tdpbssd multiplies a tile of rows by a tile of weights whose rows hold four int8 of consecutive inputs for each of 16
outputs, and adds to a tile of (16 rows, 16 outputs) int32. tdpbf16ps does the same with two bfloat16, into float32.
"""

from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types

from inference_server.kernels.simd.vectors import intrinsic_of

_features = binding.get_host_cpu_features()
HAS_INT8 = all(_features.get(name) for name in ("amx-tile", "amx-int8", "avx512f", "avx512vnni"))
HAS_BF16 = all(_features.get(name) for name in ("amx-tile", "amx-bf16", "avx512f"))

_tile, _address, _int64 = ir.IntType(8), ir.IntType(8).as_pointer(), ir.IntType(64)


def _call(builder: Any, name: str, *arguments: Any) -> None:
    form = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, form, f"llvm.x86.{name}"), arguments)


def _number(tile: int) -> Any:
    return ir.Constant(_tile, tile)


def zero(builder: Any, tile: int) -> None:
    _call(builder, "tilezero", _number(tile))


def load(builder: Any, tile: int, address: Any, stride: Any) -> None:
    """`stride`: bytes from one row of the tile to the next."""
    _call(builder, "tileloadd64", _number(tile), builder.inttoptr(address, _address), stride)


def store(builder: Any, tile: int, address: Any, stride: Any) -> None:
    """`stride` as in `load`, or a plain number."""
    where = builder.inttoptr(address, _address)
    stride = ir.Constant(_int64, stride) if isinstance(stride, int) else stride
    _call(builder, "tilestored64", _number(tile), where, stride)


def multiply(builder: Any, total: int, rows: int, weights: int) -> None:
    _call(builder, "tdpbssd", _number(total), _number(rows), _number(weights))


def multiply_bf16(builder: Any, total: int, rows: int, weights: int) -> None:
    _call(builder, "tdpbf16ps", _number(total), _number(rows), _number(weights))


@intrinsic_of(types.void, types.int64)
def configure(builder: Any, address: Any) -> None:
    """Give the tiles the shapes at `address`, 64 bytes in the form of the instruction ldtilecfg."""
    _call(builder, "ldtilecfg", builder.inttoptr(address, _address))


@intrinsic_of(types.void)
def release(builder: Any) -> None:
    _call(builder, "tilerelease")
