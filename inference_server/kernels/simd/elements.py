"""Loads and stores float32 or bfloat16 values as vectors of float32; `is_bf16` selects the format in memory."""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from llvmlite import ir
from numba.core import types

from inference_server.kernels.isa import cpu as isa
from inference_server.kernels.simd.vectors import (
    LANES,
    helper,
    int_constant,
    intrinsic_of,
    load_float32,
    loaded,
    pointer,
    splatted,
    store_float32,
    vector,
)

_float, _int16, _int32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)
_vector, _bits = ir.VectorType(_float, LANES), ir.VectorType(_int32, LANES)
_shorts = ir.VectorType(_int16, LANES)
_CONVERTS_BF16 = isa.converts_bfloat16()


def _bf16_bits(builder: Any, value: Any) -> Any:
    """Round to the nearest bfloat16, ties to even. Returns int32 with the result in the upper half; NaN stays NaN."""
    bits = builder.bitcast(value, _bits)
    odd = builder.and_(builder.lshr(bits, int_constant(16)), int_constant(1))
    rounded = builder.add(builder.add(bits, int_constant(0x7FFF)), odd)
    quiet = builder.or_(bits, int_constant(0x400000))
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.and_(chosen, int_constant(0xFFFF0000))


class _Bfloat(ir.Type):  # type: ignore[misc]
    """LLVM's type bfloat, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


def _shorts_of(builder: Any, value: Any) -> Any:
    """Round to the nearest bfloat16, ties to even, as int16.

    Uses the CPU's instruction for this conversion, if there is one. The instruction treats denormals as zeros.
    """
    if _CONVERTS_BF16:
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(_Bfloat(), LANES)), _shorts)
    return builder.trunc(builder.lshr(_bf16_bits(builder, value), int_constant(16)), _shorts)


@intrinsic_of(vector, types.int64)
def load_bf16(builder: Any, address: Any) -> Any:
    """Load LANES consecutive bfloat16 as float32."""
    return loaded(builder, address, True)


@intrinsic_of(types.void, types.int64, vector)
def store_bf16(builder: Any, address: Any, value: Any) -> None:
    """Store LANES consecutive bfloat16, rounded to nearest."""
    builder.store(_shorts_of(builder, value), pointer(builder, address, _shorts), align=2)


@intrinsic_of(vector, types.int64)
def load_one_float32(builder: Any, address: Any) -> Any:
    """Load one float32 into every lane."""
    return splatted(builder, builder.load(pointer(builder, address, _float), align=4))


@intrinsic_of(vector, types.int64)
def load_one_bf16(builder: Any, address: Any) -> Any:
    """Load one bfloat16 into every lane, as float32."""
    bits = builder.zext(builder.load(pointer(builder, address, _int16), align=2), _int32)
    return splatted(builder, builder.bitcast(builder.shl(bits, ir.Constant(_int32, 16)), _float))


@intrinsic_of(types.void, types.int64, vector)
def store_one_float32(builder: Any, address: Any, value: Any) -> None:
    """Store the first lane as one float32."""
    builder.store(builder.extract_element(value, ir.Constant(_int32, 0)), pointer(builder, address, _float), align=4)


@intrinsic_of(types.void, types.int64, vector)
def store_one_bf16(builder: Any, address: Any, value: Any) -> None:
    """Store the first lane as one bfloat16, rounded to nearest."""
    bits = builder.extract_element(_bf16_bits(builder, value), ir.Constant(_int32, 0))
    short = builder.trunc(builder.lshr(bits, ir.Constant(_int32, 16)), _int16)
    builder.store(short, pointer(builder, address, _int16), align=2)


@intrinsic_of(vector, vector)
def rounded_to_bf16(builder: Any, value: Any) -> Any:
    """Return the values rounded to bfloat16, as float32."""
    if _CONVERTS_BF16:
        wide = builder.zext(_shorts_of(builder, value), _bits)
        return builder.bitcast(builder.shl(wide, int_constant(16)), _vector)
    return builder.bitcast(_bf16_bits(builder, value), _vector)


@helper
def load(address, is_bf16):
    """Load LANES consecutive values."""
    if is_bf16:
        return load_bf16(address)
    return load_float32(address)


@helper
def store(address, value, is_bf16):
    """Store LANES consecutive values."""
    if is_bf16:
        store_bf16(address, value)
    else:
        store_float32(address, value)


@helper
def load_some(address, all_lanes, is_bf16):
    """Load LANES consecutive values, or if not `all_lanes`, one value into every lane."""
    if all_lanes:
        return load(address, is_bf16)
    if is_bf16:
        return load_one_bf16(address)
    return load_one_float32(address)


@helper
def store_some(address, value, all_lanes, is_bf16):
    """Store LANES consecutive values, or if not `all_lanes`, only the first lane."""
    if all_lanes:
        store(address, value, is_bf16)
    elif is_bf16:
        store_one_bf16(address, value)
    else:
        store_one_float32(address, value)


@helper
def rounded(value, is_bf16):
    """Return the values rounded to the format in memory, as a store and a load would."""
    if is_bf16:
        return rounded_to_bf16(value)
    return value
