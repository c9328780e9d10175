"""Linear layers with int4 weights: for many rows on the tile registers of AMX, for few on vectors, with the same bits.

A weight is code * scale + minimum, and both numbers change with every group of 32 inputs: the whole products of a group
are scaled before the next begin. The block of a kernel and the split of activations are those of linear.py.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import GROUP, ROWS, ints_of, split_rows, sums_after, units_after
from inference_server.kernels.amx.linear_int8 import OUTPUTS, W, X, finish, ints_at, number
from inference_server.kernels.simd.silu import gate_rows
from inference_server.kernels.simd.vectors import (
    argument,
    intrinsic_of,
    moved,
    multiply_add,
    pointer,
    splatted,
    stack,
    take_next,
)

_floats, _int32 = ir.VectorType(ir.FloatType(), 16), ir.IntType(32)
_ints = ir.VectorType(_int32, 16)
_halves, _codes = ir.VectorType(ir.HalfType(), 16), ir.VectorType(ir.IntType(8), 64)


def halves_at(builder: Any, address: Any) -> tuple[Any, Any]:
    """64 bytes of codes: their low and their high halves."""
    codes = builder.load(pointer(builder, address, _codes), align=1)
    low = builder.and_(codes, ir.Constant(_codes, [15] * 64))
    return low, builder.lshr(codes, ir.Constant(_codes, [4] * 64))


@intrinsic_of(types.void, types.int64, types.int64, types.int64)
def _unpack(builder: Any, source: Any, target: Any, count: Any) -> None:
    """`count` times 256 bytes: their low halves become 256 bytes, then their high halves."""
    with cgutils.for_range(builder, count) as loop:
        for piece in range(0, 256, 64):
            low, high = halves_at(builder, moved(builder, source, (loop.index, 256), piece))
            place = moved(builder, target, (loop.index, 512), piece)
            builder.store(low, pointer(builder, place, _codes), align=1)
            builder.store(high, pointer(builder, moved(builder, place, 256), _codes), align=1)


def _products_by_tiles(builder: Any, num_rows: int, rows: Any, codes: Any, scratch: Any) -> list[Any]:
    """Of one group, unpacked: high and low parts for each row and half a strip, (16 outputs) int32 each."""
    amx.load(builder, X, rows, number(GROUP))
    for o in range(2):
        amx.load(builder, W + o, moved(builder, codes, 512 * o), number(64))
        amx.zero(builder, o)
        amx.multiply(builder, o, X, W + o)
        amx.store(builder, o, moved(builder, scratch, 64 * o), 128)
    places = [moved(builder, scratch, 128 * row + 64 * o) for row in range(num_rows) for o in range(2)]
    return [(ints_at(builder, place), ints_at(builder, moved(builder, place, ROWS * 128))) for place in places]


def _products_by_vectors(builder: Any, num_rows: int, rows: Any, codes: Any, _scratch: Any) -> list[Any]:
    """The same of a group as it lies in memory: four inputs of 16 outputs in one instruction."""
    form = ir.FunctionType(_ints, [_ints] * 3)
    multiply = cgutils.get_or_insert_function(builder.module, form, "llvm.x86.avx512.vpdpbusd.512")
    totals = [[ints_of(0), ints_of(0)] for _ in range(2 * num_rows)]
    for piece in range(4):
        weights = [halves_at(builder, moved(builder, codes, 256 * o + 64 * piece)) for o in range(2)]
        for half in range(2):
            for row in range(num_rows):
                for part in range(2):
                    place = moved(builder, rows, GROUP * (row + ROWS * part) + 4 * piece + 16 * half)
                    four = builder.load(pointer(builder, place, _int32), align=1)
                    single = builder.insert_element(ir.Constant(_ints, ir.Undefined), four, ir.Constant(_int32, 0))
                    inputs = builder.shuffle_vector(single, single, ints_of(0))
                    for o in range(2):
                        total = totals[2 * row + o]
                        weight = builder.bitcast(weights[o][half], _ints)
                        total[part] = builder.call(multiply, [total[part], weight, inputs])
    return totals


def factors_at(builder: Any, scales: Any) -> list[Any]:
    """Scale, minimum, scale, minimum of one group, for 16 outputs each."""
    places = [moved(builder, scales, 32 * index) for index in (0, 2, 1, 3)]
    return [builder.fpext(builder.load(pointer(builder, place, _halves), align=2), _floats) for place in places]


def _strip(num_rows: int, products: Any, group_bytes: int) -> Any:
    @intrinsic_of(types.void, *[types.int64] * 7)
    def multiply_strip(
        builder: Any, rows: Any, codes: Any, scales: Any, sums: Any, groups: Any, scratch: Any, totals: Any
    ) -> None:
        """`num_rows` rows times a strip, a group at a time: each is scaled by itself. Totals: (row, 32 outputs) float32."""
        registers = [cgutils.alloca_once(builder, _floats) for _ in range(2 * num_rows)]
        for register in registers:
            builder.store(ir.Constant(_floats, [0.0] * 16), register)
        with cgutils.for_range(builder, groups) as loop:
            group = loop.index
            row_codes = moved(builder, codes, (group, group_bytes))
            pairs = products(builder, num_rows, moved(builder, rows, (group, 2 * ROWS * GROUP)), row_codes, scratch)
            factors = factors_at(builder, moved(builder, scales, (group, 128)))
            for index, register in enumerate(registers):
                row, part = divmod(index, 2)
                high, low = pairs[index]
                both = builder.sitofp(builder.add(builder.shl(high, ints_of(7)), low), _floats)
                group_sum = builder.load(
                    pointer(builder, moved(builder, sums, (group, 4), (groups, 4 * row)), ir.FloatType()), align=4
                )
                value = multiply_add(builder, both, factors[2 * part], builder.load(register))
                value = multiply_add(builder, splatted(builder, group_sum), factors[2 * part + 1], value)
                builder.store(value, register)
        for index, register in enumerate(registers):
            place = pointer(builder, moved(builder, totals, 64 * index), _floats)
            builder.store(builder.load(register), place, align=4)

    return multiply_strip


_FEW_ROWS = 4
_FEW_1, _FEW_2, _FEW_4 = (_strip(num_rows, _products_by_vectors, 512) for num_rows in (1, 2, 4))
_MANY_4, _MANY_8 = (_strip(num_rows, _products_by_tiles, 1024) for num_rows in (4, 8))


_finish = finish(False)


def make_int4(is_gated: bool) -> Any:
    """`is_gated`: as for int8.

    Weights: for each strip and group two tiles of 8 rows, in half bytes; scales: 32 scales and 32 minima float16."""

    def linear_int4(block):
        weights, scales, x, out = (
            argument(block, 3),
            argument(block, 4),
            argument(block, 5),
            argument(block, 6),
        )
        bias, num_rows, width = argument(block, 7), argument(block, 8), argument(block, 9)
        num_outputs, memory = argument(block, 10), argument(block, 11)
        scratch, totals, codes, finished = stack(2048), stack(1024), stack(width * OUTPUTS), stack(ROWS * 128)
        out_bytes = num_outputs * 2 if is_gated else num_outputs * 4
        groups = width // GROUP
        units = units_after(memory, num_rows, width)
        sums = sums_after(units, num_rows)
        split_rows(block, x, memory, num_rows, width, GROUP)
        amx.configure(argument(block, 12))
        while True:
            strip = take_next(block)
            if strip >= num_outputs // OUTPUTS:
                break
            packed = weights + strip * groups * 512
            factors, place = scales + strip * groups * 128, strip * OUTPUTS * 4
            if num_rows > _FEW_ROWS:
                _unpack(packed, codes, groups * 2)
            for first in range(0, num_rows, ROWS):
                rows, row_sums, count = memory + first * 2 * width, sums + first * groups * 4, num_rows - first
                if num_rows == 1:
                    _FEW_1(rows, packed, factors, row_sums, groups, scratch, totals)
                elif num_rows == 2:
                    _FEW_2(rows, packed, factors, row_sums, groups, scratch, totals)
                elif num_rows <= _FEW_ROWS:
                    _FEW_4(rows, packed, factors, row_sums, groups, scratch, totals)
                elif count <= 4:
                    _MANY_4(rows, codes, factors, row_sums, groups, scratch, totals)
                else:
                    _MANY_8(rows, codes, factors, row_sums, groups, scratch, totals)
                count, target, rows_units = min(count, ROWS), out + first * out_bytes, units + first * 4
                # The scales are in the totals already.
                if is_gated:
                    _finish(totals, rows_units, totals, bias + place, finished, 128, count)
                    gate_rows(finished, target + place // 2, out_bytes, count, False)
                else:
                    _finish(totals, rows_units, totals, bias + place, target + place, out_bytes, count)
        amx.release()

    return linear_int4
