"""Defines a numba type for vectors of float32, and the operations of the kernels on it as LLVM code.

LLVM vectorises only some of numba's loops; these operations are always vector code. A vector has as many lanes as the
CPU's widest registers. Addresses are plain int64. Nothing is marked fast-math: NaN stays NaN, and the order of sums is
fixed.
"""

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from inference_server.kernels.isa import cpu as isa

LANES = isa.num_float32_lanes()

_float, _int16, _int32, _int64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_vector, _bits = ir.VectorType(_float, LANES), ir.VectorType(_int32, LANES)
_shorts = ir.VectorType(_int16, LANES)


def helper(function: Callable[..., Any]) -> Any:
    """Make a function callable from kernels; it is always inlined."""
    return njit(forceinline=True, error_model="numpy", no_cpython_wrapper=True)(function)


class VectorType(types.Type):
    """numba's type of a vector of LANES float32."""

    def __init__(self) -> None:
        super().__init__(name=f"Vector({LANES})")


vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _vector)


def intrinsic_of(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make `emit(builder, *values) -> value` a numba intrinsic with these numba types."""
    signature = result(*arguments)

    def wrap(emit: Callable[..., Any]) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            produced = emit(builder, *values)
            return _context.get_dummy_value() if result is types.void else produced

        def define(_typing_context: Any, *_types: Any) -> Any:
            return signature, generate

        names = ["typing_context", *(f"value{index}" for index in range(len(arguments)))]
        define.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])  # type: ignore[attr-defined]
        define.__name__ = emit.__name__
        return intrinsic(define)

    return wrap


def pointer(builder: Any, address: Any, to: Any) -> Any:
    """Return an int64 address as a pointer to the LLVM type `to`."""
    return builder.inttoptr(address, to.as_pointer())


def moved(builder: Any, address: Any, *terms: Any) -> Any:
    """Return the sum of the address and all terms.

    A term is a number of bytes, or a pair (int64 value, bytes per unit).
    """
    for term in terms:
        value, each = term if isinstance(term, tuple) else (ir.Constant(_int64, term), 1)
        address = builder.add(address, builder.mul(value, ir.Constant(_int64, each)))
    return address


def constant(value: float) -> Any:
    """Return a vector with the same float32 in every lane."""
    return ir.Constant(_vector, [value] * LANES)


def int_constant(value: int) -> Any:
    """Return a vector with the same int32 in every lane."""
    return ir.Constant(_bits, [value] * LANES)


def splatted(builder: Any, scalar: Any) -> Any:
    """Return a vector with the float32 `scalar` in every lane."""
    single = builder.insert_element(ir.Constant(_vector, ir.Undefined), scalar, ir.Constant(_int32, 0))
    return builder.shuffle_vector(single, single, ir.Constant(_bits, [0] * LANES))


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, in one instruction if the CPU has it."""
    signature = ir.FunctionType(_vector, [_vector] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [a, b, c])


def loaded(builder: Any, address: Any, is_bf16: bool) -> Any:
    """Load LANES consecutive float32, or bfloat16 converted to float32."""
    if not is_bf16:
        return builder.load(pointer(builder, address, _vector), align=4)
    shorts = builder.load(pointer(builder, address, _shorts), align=2)
    return builder.bitcast(builder.shl(builder.zext(shorts, _bits), int_constant(16)), _vector)


def stored(builder: Any, address: Any, value: Any) -> None:
    """Store a vector as LANES consecutive float32."""
    builder.store(value, pointer(builder, address, _vector), align=4)


@intrinsic_of(vector, types.int64)
def load_float32(builder: Any, address: Any) -> Any:
    """Load LANES consecutive float32."""
    return loaded(builder, address, False)


@intrinsic_of(types.void, types.int64, vector)
def store_float32(builder: Any, address: Any, value: Any) -> None:
    """Store LANES consecutive float32."""
    stored(builder, address, value)


@intrinsic_of(vector, types.float32)
def splat(builder: Any, scalar: Any) -> Any:
    """Return a vector with `scalar` in every lane."""
    return splatted(builder, scalar)


@intrinsic_of(vector, vector, vector, vector)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, in one instruction if the CPU has it."""
    return multiply_add(builder, a, b, c)


@intrinsic_of(vector, vector, vector)
def add(builder: Any, a: Any, b: Any) -> Any:
    """Return a + b, lane by lane."""
    return builder.fadd(a, b)


@intrinsic_of(vector, vector, vector)
def sub(builder: Any, a: Any, b: Any) -> Any:
    """Return a - b, lane by lane."""
    return builder.fsub(a, b)


@intrinsic_of(vector, vector, vector)
def mul(builder: Any, a: Any, b: Any) -> Any:
    """Return a * b, lane by lane."""
    return builder.fmul(a, b)


@intrinsic_of(vector, vector, vector)
def div(builder: Any, a: Any, b: Any) -> Any:
    """Return a / b, lane by lane."""
    return builder.fdiv(a, b)


@intrinsic_of(vector, vector, vector)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """Return the larger of a and b, lane by lane; b if one of them is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def sums_by_lane(builder: Any, values: list[Any]) -> Any:
    """Return, from LANES vectors, one vector with the sum of vector i's lanes in lane i.

    Each round folds two vectors into one: a blend keeps half of each, a shuffle aligns the other halves with it.
    """
    stride = LANES // 2
    while stride:
        keep = [lane if not lane & stride else LANES + lane for lane in range(LANES)]
        align = [lane ^ stride if not lane & stride else LANES + (lane ^ stride) for lane in range(LANES)]
        values = [
            builder.fadd(
                builder.shuffle_vector(a, b, ir.Constant(_bits, keep)),
                builder.shuffle_vector(a, b, ir.Constant(_bits, align)),
            )
            for a, b in zip(values[:stride], values[stride:], strict=True)
        ]
        stride //= 2
    return values[0]


def _halved(builder: Any, value: Any, join: Any) -> Any:
    """Reduce all lanes to one scalar with `join`, as a binary tree."""
    stride = LANES // 2
    while stride:
        swapped = ir.Constant(_bits, [lane ^ stride for lane in range(LANES)])
        value = join(value, builder.shuffle_vector(value, value, swapped))
        stride //= 2
    return builder.extract_element(value, ir.Constant(_int32, 0))


@intrinsic_of(types.float32, vector)
def lanes_sum(builder: Any, value: Any) -> Any:
    """Return the sum of all lanes."""
    return _halved(builder, value, builder.fadd)


@intrinsic_of(types.float32, vector)
def lanes_max(builder: Any, value: Any) -> Any:
    """Return the largest lane; NaN lanes may be ignored."""

    def larger(a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return _halved(builder, value, larger)


@intrinsic_of(vector, vector, types.int64, types.float32)
def keep_first(builder: Any, value: Any, count: Any, other: Any) -> Any:
    """Return `value` in the first `count` lanes and the scalar `other` in the rest."""
    short = builder.trunc(count, _int32)
    counts = builder.bitcast(splatted(builder, builder.bitcast(short, _float)), _bits)
    lanes = ir.Constant(_bits, list(range(LANES)))
    return builder.select(builder.icmp_signed("<", lanes, counts), value, splatted(builder, other))


@intrinsic_of(vector, vector)
def exp(builder: Any, x: Any) -> Any:
    """Return e**x within 2 units in the last place. Below -87 it is e**-87, above 88.3 infinity; NaN stays NaN.

    With x = n ln 2 + r, e**x = 2**n * e**r. Adding 1.5 * 2**23 rounds n to an integer and leaves it in the low bits,
    from which it is shifted into the exponent. e**r is the polynomial of Cephes' expf.
    """
    x = builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(-87.0), x)
    x = builder.select(builder.fcmp_ordered(">", x, constant(89.0)), constant(89.0), x)
    shifted = multiply_add(builder, x, constant(1.44269504088896341), constant(12582912.0))
    n = builder.fsub(shifted, constant(12582912.0))
    r = multiply_add(builder, n, constant(-0.693359375), x)
    r = multiply_add(builder, n, constant(2.12194440054690583e-4), r)
    p = constant(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = multiply_add(builder, p, r, constant(coefficient))
    p = multiply_add(builder, builder.fmul(r, r), p, builder.fadd(r, constant(1.0)))
    exponent = builder.shl(builder.bitcast(shifted, _bits), int_constant(23))
    power = builder.bitcast(builder.add(exponent, int_constant(0x3F800000)), _vector)
    return builder.fmul(p, power)
