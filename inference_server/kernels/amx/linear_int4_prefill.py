"""Linear layers with int4 weights for many rows (prompts): weights are widened to bfloat16 and multiplied on AMX.

A panel is widened just before it is used, so that memory is read once, at 5 bits a weight. Activations are rounded to
bfloat16; results are float32. The argument block is the same as in linear_int8.py, the layout of weights and scales as
in linear_int4.py, and the kernel data as in linear_bf16.py.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from inference_server.kernels.amx import intrinsics as amx
from inference_server.kernels.amx.activations import GROUP, int_vector, round_rows
from inference_server.kernels.amx.linear_bf16 import GATED_WIDE, WIDE, configure_first, multiply_rows
from inference_server.kernels.amx.linear_int4 import factors_at, halves_at
from inference_server.kernels.amx.linear_int8 import OUTPUTS
from inference_server.kernels.simd.memory import argument, stack, take_next
from inference_server.kernels.simd.vectors import intrinsic_of, moved, multiply_add, pointer

_ints, _floats = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.FloatType(), 16)


def _pair(builder: Any, fours: Any, first: int, scale: Any, minimum: Any) -> Any:
    """Convert codes `first` and `first + 1` of the four in each lane to two bfloat16 weights in that lane."""
    parts = []
    for index in (first, first + 1):
        code = builder.and_(builder.lshr(fours, int_vector(8 * index)), int_vector(255))
        value = multiply_add(builder, builder.sitofp(code, _floats), scale, minimum)
        parts.append(
            builder.add(builder.bitcast(value, _ints), int_vector(0x8000))
        )  # rounds to nearest; weights are finite
    low = builder.lshr(parts[0], int_vector(16))
    return builder.or_(low, builder.and_(parts[1], int_vector(-65536)))


@intrinsic_of(types.void, *[types.int64] * 4)
def _widen(builder: Any, packed: Any, scales: Any, groups: Any, target: Any) -> None:
    """Widen one panel to the layout of linear_bf16.py."""
    with cgutils.for_range(builder, groups) as loop:
        factors = factors_at(builder, moved(builder, scales, (loop.index, 128)))
        for o in range(2):
            scale, minimum = factors[2 * o], factors[2 * o + 1]
            tile = moved(builder, target, (loop.index, 2048), 1024 * o)
            for piece in range(4):
                both = halves_at(builder, moved(builder, packed, (loop.index, 512), 256 * o + 64 * piece))
                for half, codes in enumerate(both):
                    fours, row = builder.bitcast(codes, _ints), 2 * (piece + 4 * half)
                    for part in range(2):
                        pairs = _pair(builder, fours, 2 * part, scale, minimum)
                        place = pointer(builder, moved(builder, tile, 64 * (row + part)), _ints)
                        builder.store(pairs, place, align=64)


def make_int4_many(is_gated: bool) -> Any:
    """Return the int4 kernel for many rows. `is_gated`: see linear_int8.make_int8."""
    output_format = GATED_WIDE if is_gated else WIDE

    def linear_int4_many(block):
        weights, scales, x, out = argument(block, 3), argument(block, 4), argument(block, 5), argument(block, 6)
        bias, num_rows, width = argument(block, 7), argument(block, 8), argument(block, 9)
        num_outputs, workspace, kernel_data = argument(block, 10), argument(block, 11), argument(block, 12)
        totals, wide = stack(4096), stack(width * OUTPUTS * 2)
        groups = width // GROUP
        round_rows(block, x, workspace, num_rows, width)
        configure_first(kernel_data, num_rows)
        while True:
            panel = take_next(block)
            if panel >= num_outputs // OUTPUTS:
                break
            place = panel * OUTPUTS * 4
            column, out_bytes = (place // 2, num_outputs * 2) if is_gated else (place, num_outputs * 4)
            _widen(weights + panel * groups * 512, scales + panel * groups * 128, groups, wide)
            multiply_rows(
                workspace,
                wide,
                kernel_data,
                totals,
                bias + place,
                out + column,
                num_rows,
                width,
                out_bytes,
                output_format,
            )
        amx.release()

    return linear_int4_many
