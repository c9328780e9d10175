"""Scalars in memory, argument blocks, the stack and shared counters, as LLVM code. Addresses are plain int64."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from inference_server.kernels.simd.vectors import intrinsic_of, moved, pointer

_float, _int32, _int64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


@intrinsic_of(types.int64, types.int64)
def load_int64(builder: Any, address: Any) -> Any:
    """Load one int64."""
    return builder.load(pointer(builder, address, _int64), align=8)


@intrinsic_of(types.int64, types.int64)
def load_int32(builder: Any, address: Any) -> Any:
    """Load one int32 as int64."""
    return builder.sext(builder.load(pointer(builder, address, _int32), align=4), _int64)


@intrinsic_of(types.float32, types.int64)
def load_scalar(builder: Any, address: Any) -> Any:
    """Load one float32."""
    return builder.load(pointer(builder, address, _float), align=4)


@intrinsic_of(types.void, types.int64, types.float32)
def store_scalar(builder: Any, address: Any, value: Any) -> None:
    """Store one float32."""
    builder.store(value, pointer(builder, address, _float), align=4)


@intrinsic_of(types.void, types.int64, types.int64)
def store_int64(builder: Any, address: Any, value: Any) -> None:
    """Store one int64."""
    builder.store(value, pointer(builder, address, _int64), align=8)


@intrinsic_of(types.int64, types.int64, types.int64)
def argument(builder: Any, block: Any, index: Any) -> Any:
    """Return word `index` of the argument block as int64."""
    return builder.load(pointer(builder, moved(builder, block, (index, 8)), _int64), align=8)


@intrinsic_of(types.float32, types.int64, types.int64)
def real_argument(builder: Any, block: Any, index: Any) -> Any:
    """Return word `index` of the argument block, a double, as float32."""
    address = moved(builder, block, (index, 8))
    return builder.fptrunc(builder.load(pointer(builder, address, ir.DoubleType()), align=8), _float)


@intrinsic_of(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Start loading the cache line at `address`, without waiting for it."""
    signature = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), _int32, _int32, _int32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    hints = [ir.Constant(_int32, hint) for hint in (0, 3, 1)]  # read access, nearest cache level, data cache
    builder.call(function, [pointer(builder, address, ir.IntType(8)), *hints])


@intrinsic_of(types.int64, types.int64)
def stack(builder: Any, num_bytes: Any) -> Any:
    """Allocate bytes on the stack until the kernel returns, aligned to 64. Must not be called in a loop or a helper."""
    memory = builder.alloca(ir.IntType(8), num_bytes)
    memory.align = 64
    return builder.ptrtoint(memory, _int64)


@intrinsic_of(types.int64, types.int64)
def take_next(builder: Any, address: Any) -> Any:
    """Return the counter at `address` and add 1 to it atomically, so that every call returns a different number."""
    return builder.atomic_rmw("add", pointer(builder, address, _int64), ir.Constant(_int64, 1), "monotonic")
