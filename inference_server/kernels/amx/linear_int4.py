"""Linear layers with int4 weights: on AMX for more than four rows, otherwise on vectors, with bit-identical results.

A weight is code * scale + minimum, and every group of 32 inputs has its own scale and minimum. The integer sum of a
group is therefore scaled before the next group begins:
result += sum * scale + (sum of the group's activations) * minimum.
Argument block and conversion of activations are the same as in linear_int8.py.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import GROUP, ROWS, int_vector, row_scales_after, split_rows, sums_after
from inference_server.kernels.amx.linear_int8 import OUTPUTS, W, X, finish, int64_constant, ints_at
from inference_server.kernels.simd.memory import argument, stack, take_next
from inference_server.kernels.simd.silu import gate_rows
from inference_server.kernels.simd.vectors import intrinsic_of, moved, multiply_add, pointer, splatted

_floats, _int32 = ir.VectorType(ir.FloatType(), 16), ir.IntType(32)
_ints = ir.VectorType(_int32, 16)
_halves, _codes = ir.VectorType(ir.HalfType(), 16), ir.VectorType(ir.IntType(8), 64)


def halves_at(builder: Any, address: Any) -> tuple[Any, Any]:
    """Load 64 bytes of codes. Returns their low and their high nibbles, as vectors of int8."""
    codes = builder.load(pointer(builder, address, _codes), align=1)
    low = builder.and_(codes, ir.Constant(_codes, [15] * 64))
    return low, builder.lshr(codes, ir.Constant(_codes, [4] * 64))


@intrinsic_of(types.void, types.int64, types.int64, types.int64)
def _unpack(builder: Any, source: Any, target: Any, count: Any) -> None:
    """Unpack `count` times 256 bytes of codes to 256 bytes of low nibbles, then 256 bytes of high nibbles."""
    with cgutils.for_range(builder, count) as loop:
        for piece in range(0, 256, 64):
            low, high = halves_at(builder, moved(builder, source, (loop.index, 256), piece))
            place = moved(builder, target, (loop.index, 512), piece)
            builder.store(low, pointer(builder, place, _codes), align=1)
            builder.store(high, pointer(builder, moved(builder, place, 256), _codes), align=1)


def _products_by_tiles(builder: Any, num_rows: int, rows: Any, codes: Any, scratch: Any) -> list[Any]:
    """Multiply one group with AMX, from unpacked codes.

    Returns, for each row and half a panel, the sums of the high and of the low digits, each (16 outputs,) int32.
    """
    amx.load(builder, X, rows, int64_constant(GROUP))
    for o in range(2):
        amx.load(builder, W + o, moved(builder, codes, 512 * o), int64_constant(64))
        amx.zero(builder, o)
        amx.multiply(builder, o, X, W + o)
        amx.store(builder, o, moved(builder, scratch, 64 * o), 128)
    places = [moved(builder, scratch, 128 * row + 64 * o) for row in range(num_rows) for o in range(2)]
    return [(ints_at(builder, place), ints_at(builder, moved(builder, place, ROWS * 128))) for place in places]


def _products_by_vectors(builder: Any, num_rows: int, rows: Any, codes: Any, _scratch: Any) -> list[Any]:
    """Multiply one group with AVX512-VNNI, from packed codes: an instruction multiplies 4 inputs of 16 outputs.

    Returns the same as `_products_by_tiles`.
    """
    signature = ir.FunctionType(_ints, [_ints] * 3)
    multiply = cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.avx512.vpdpbusd.512")
    totals = [[int_vector(0), int_vector(0)] for _ in range(2 * num_rows)]
    for piece in range(4):
        weights = [halves_at(builder, moved(builder, codes, 256 * o + 64 * piece)) for o in range(2)]
        for half in range(2):
            for row in range(num_rows):
                for part in range(2):
                    place = moved(builder, rows, GROUP * (row + ROWS * part) + 4 * piece + 16 * half)
                    four = builder.load(pointer(builder, place, _int32), align=1)
                    single = builder.insert_element(ir.Constant(_ints, ir.Undefined), four, ir.Constant(_int32, 0))
                    inputs = builder.shuffle_vector(single, single, int_vector(0))
                    for o in range(2):
                        total = totals[2 * row + o]
                        weight = builder.bitcast(weights[o][half], _ints)
                        total[part] = builder.call(multiply, [total[part], weight, inputs])
    return totals


def factors_at(builder: Any, scales: Any) -> list[Any]:
    """Load scale, minimum, scale and minimum of one group, as float32 for 16 outputs each."""
    places = [moved(builder, scales, 32 * index) for index in (0, 2, 1, 3)]
    return [builder.fpext(builder.load(pointer(builder, place, _halves), align=2), _floats) for place in places]


def _panel_product(num_rows: int, products: Any, group_bytes: int) -> Any:
    @intrinsic_of(types.void, *[types.int64] * 7)
    def multiply_panel(
        builder: Any, rows: Any, codes: Any, scales: Any, sums: Any, groups: Any, scratch: Any, totals: Any
    ) -> None:
        """Multiply `num_rows` rows by a panel, group by group. `totals` is the result, (row, 32 outputs) float32.

        The result is in units of the row scale.
        """
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
                both = builder.sitofp(builder.add(builder.shl(high, int_vector(7)), low), _floats)
                group_sum = builder.load(
                    pointer(builder, moved(builder, sums, (group, 4), (groups, 4 * row)), ir.FloatType()), align=4
                )
                value = multiply_add(builder, both, factors[2 * part], builder.load(register))
                value = multiply_add(builder, splatted(builder, group_sum), factors[2 * part + 1], value)
                builder.store(value, register)
        for index, register in enumerate(registers):
            place = pointer(builder, moved(builder, totals, 64 * index), _floats)
            builder.store(builder.load(register), place, align=4)

    return multiply_panel


_FEW_ROWS = 4  # rows up to which vectors are faster than tiles
_FEW_1, _FEW_2, _FEW_4 = (_panel_product(num_rows, _products_by_vectors, 512) for num_rows in (1, 2, 4))
_MANY_4, _MANY_8 = (_panel_product(num_rows, _products_by_tiles, 1024) for num_rows in (4, 8))


_finish = finish(False)


def make_int4(is_gated: bool) -> Any:
    """Return the int4 kernel for few rows, which also serves all rows if batch invariance is required.

    Weights are, for each panel and group of 32 inputs, two tiles of 8 rows in nibbles; scales are 32 scales and 32
    minima in float16. `is_gated`: see linear_int8.make_int8.
    """

    def linear_int4(block):
        weights, scales, x, out = (
            argument(block, 3),
            argument(block, 4),
            argument(block, 5),
            argument(block, 6),
        )
        bias, num_rows, width = argument(block, 7), argument(block, 8), argument(block, 9)
        num_outputs, workspace = argument(block, 10), argument(block, 11)
        scratch, totals, codes, finished = stack(2048), stack(1024), stack(width * OUTPUTS), stack(ROWS * 128)
        out_bytes = num_outputs * 2 if is_gated else num_outputs * 4
        groups = width // GROUP
        row_scales = row_scales_after(workspace, num_rows, width)
        sums = sums_after(row_scales, num_rows)
        split_rows(block, x, workspace, num_rows, width, GROUP)
        amx.configure(argument(block, 12))
        while True:
            panel = take_next(block)
            if panel >= num_outputs // OUTPUTS:
                break
            packed = weights + panel * groups * 512
            factors, place = scales + panel * groups * 128, panel * OUTPUTS * 4
            if num_rows > _FEW_ROWS:
                _unpack(packed, codes, groups * 2)
            for first in range(0, num_rows, ROWS):
                rows, row_sums, count = workspace + first * 2 * width, sums + first * groups * 4, num_rows - first
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
                count, target, scales_of_rows = min(count, ROWS), out + first * out_bytes, row_scales + first * 4
                # The totals contain the weights' scales already, so the argument for them is not read.
                if is_gated:
                    _finish(totals, scales_of_rows, totals, bias + place, finished, 128, count)
                    gate_rows(finished, target + place // 2, out_bytes, count, False)
                else:
                    _finish(totals, scales_of_rows, totals, bias + place, target + place, out_bytes, count)
        amx.release()

    return linear_int4
