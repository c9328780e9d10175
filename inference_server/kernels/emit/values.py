"""Represents the values in generated code as Python objects: int64, float32, conditions and vectors.

A Python operator on these values emits the LLVM instruction. No instruction has fast-math flags, so NaN stays NaN, and
the order of sums is fixed. Python numbers become constants. Addresses are `Int` values.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any, Self

from llvmlite import ir

from inference_server.kernels.emit.types import DOUBLE, FLOAT, HALF, INT1, INT32, INT64, vector_type


class Value:
    """A value of the generated code: an LLVM value with the builder that appends instructions to its function."""

    __slots__ = ("builder", "llvm")

    def __init__(self, builder: Any, llvm: Any) -> None:
        self.builder, self.llvm = builder, llvm

    def _constant(self, number: Any) -> Any:
        return ir.Constant(self.llvm.type, number)

    def _operand(self, other: Any) -> Any:
        return other.llvm if isinstance(other, Value) else self._constant(other)

    def _new(self, llvm: Any) -> Self:
        return type(self)(self.builder, llvm)

    def _apply(self, operation: Callable[..., Any], other: Any) -> Self:
        return self._new(operation(self.llvm, self._operand(other)))

    def _reflected(self, operation: Callable[..., Any], other: Any) -> Self:
        return self._new(operation(self._operand(other), self.llvm))


class Condition(Value):
    """A boolean, or a vector of booleans."""

    __slots__ = ()

    def __and__(self, other: "Condition") -> "Condition":
        return self._apply(self.builder.and_, other)

    def __or__(self, other: "Condition") -> "Condition":
        return self._apply(self.builder.or_, other)

    def __invert__(self) -> "Condition":
        return self._new(self.builder.not_(self.llvm))

    def any(self) -> "Condition":
        """Return whether any lane of a vector of conditions is true."""
        return self._new(
            call_intrinsic(self.builder, f"llvm.vector.reduce.or.v{self.llvm.type.count}i1", INT1, self.llvm)
        )

    def select(self, if_true: Any, if_false: Any) -> Any:
        """Return one of two values of the same class. One of them may be a Python number."""
        like = if_true if isinstance(if_true, Value) else if_false
        return like._new(self.builder.select(self.llvm, like._operand(if_true), like._operand(if_false)))


class Int(Value):
    """An int64, often an address. Division, remainder and `>>` treat it as unsigned; comparisons are signed."""

    __slots__ = ()

    def __add__(self, other: "Int | int") -> "Int":
        return self._apply(self.builder.add, other)

    __radd__ = __add__

    def __sub__(self, other: "Int | int") -> "Int":
        return self._apply(self.builder.sub, other)

    def __rsub__(self, other: "Int | int") -> "Int":
        return self._reflected(self.builder.sub, other)

    def __mul__(self, other: "Int | int") -> "Int":
        return self._apply(self.builder.mul, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: "Int | int") -> "Int":
        return self._apply(self.builder.udiv, other)

    def __mod__(self, other: "Int | int") -> "Int":
        return self._apply(self.builder.urem, other)

    def __rshift__(self, other: "Int | int") -> "Int":
        return self._apply(self.builder.lshr, other)

    def __and__(self, other: "Int | int") -> "Int":
        return self._apply(self.builder.and_, other)

    def _compare(self, operator: str, other: "Int | int") -> Condition:
        return Condition(self.builder, self.builder.icmp_signed(operator, self.llvm, self._operand(other)))

    def __lt__(self, other: "Int | int") -> Condition:
        return self._compare("<", other)

    def __le__(self, other: "Int | int") -> Condition:
        return self._compare("<=", other)

    def __gt__(self, other: "Int | int") -> Condition:
        return self._compare(">", other)

    def __ge__(self, other: "Int | int") -> Condition:
        return self._compare(">=", other)

    def equals(self, other: "Int | int") -> Condition:
        """Compare two integers for equality."""
        return self._compare("==", other)

    def minimum(self, other: "Int | int") -> "Int":
        """Return the smaller of two integers."""
        result: Int = (self < other).select(self, other)
        return result

    def maximum(self, other: "Int | int") -> "Int":
        """Return the larger of two integers."""
        result: Int = (self > other).select(self, other)
        return result

    def to_float(self) -> "Float":
        """Return the nearest float32."""
        return Float(self.builder, self.builder.sitofp(self.llvm, FLOAT))

    def bits_as_float(self) -> "Float":
        """Return the float32 with the low 32 bits of this integer."""
        return Float(self.builder, self.builder.bitcast(self.builder.trunc(self.llvm, INT32), FLOAT))

    def splat(self, element: Any, lanes: int) -> "Vector":
        """Return a vector with the low bits of this integer, as the integer type `element`, in every lane."""
        return splat(self.builder, self.builder.trunc(self.llvm, element), lanes)


class Float(Value):
    """A float32."""

    __slots__ = ()

    def __add__(self, other: "Float | float") -> "Float":
        return self._apply(self.builder.fadd, other)

    def __sub__(self, other: "Float | float") -> "Float":
        return self._apply(self.builder.fsub, other)

    def __rsub__(self, other: "Float | float") -> "Float":
        return self._reflected(self.builder.fsub, other)

    def __mul__(self, other: "Float | float") -> "Float":
        return self._apply(self.builder.fmul, other)

    def __truediv__(self, other: "Float | float") -> "Float":
        return self._apply(self.builder.fdiv, other)

    def __rtruediv__(self, other: "Float | float") -> "Float":
        return self._reflected(self.builder.fdiv, other)

    def _compare(self, operator: str, other: "Float | float") -> Condition:
        return Condition(self.builder, self.builder.fcmp_ordered(operator, self.llvm, self._operand(other)))

    def __lt__(self, other: "Float | float") -> Condition:
        return self._compare("<", other)

    def __gt__(self, other: "Float | float") -> Condition:
        return self._compare(">", other)

    def differs(self, other: "Float | float") -> Condition:
        """Compare two numbers for inequality. False if one of them is NaN."""
        return self._compare("!=", other)

    def maximum(self, other: "Float | float") -> "Float":
        """Return the larger number; `other` if one of them is NaN."""
        result: Float = (self > other).select(self, other)
        return result

    def bits(self) -> Int:
        """Return the 32 bits as a signed integer."""
        return Int(self.builder, self.builder.sext(self.builder.bitcast(self.llvm, INT32), INT64))

    def square_root(self) -> "Float":
        """Return the square root."""
        return Float(self.builder, call_intrinsic(self.builder, "llvm.sqrt.f32", FLOAT, self.llvm))

    def splat(self, lanes: int) -> "Vector":
        """Return a vector with this number in every lane."""
        return splat(self.builder, self.llvm, lanes)


class Vector(Value):
    """A vector of float32, integers, or conditions. A scalar operand is used in every lane.

    Operators on integer vectors mean the same as for Python integers, except that `>>` shifts zeros in.
    """

    __slots__ = ()

    @property
    def lanes(self) -> int:
        """Return the number of elements."""
        return int(self.llvm.type.count)

    @property
    def element(self) -> Any:
        """Return the LLVM type of an element."""
        return self.llvm.type.element

    @property
    def is_float(self) -> bool:
        """Return True for a vector of float32 or float64."""
        return self.element in (FLOAT, DOUBLE)

    def _constant(self, number: Any) -> Any:
        return ir.Constant(self.llvm.type, [float(number) if self.is_float else number] * self.lanes)

    def _operand(self, other: Any) -> Any:
        if isinstance(other, Float):
            return splat(self.builder, other.llvm, self.lanes).llvm
        return super()._operand(other)

    def _either(self, of_floats: Callable[..., Any], of_integers: Callable[..., Any], other: Any) -> "Vector":
        return self._apply(of_floats if self.is_float else of_integers, other)

    def __add__(self, other: Any) -> "Vector":
        return self._either(self.builder.fadd, self.builder.add, other)

    def __sub__(self, other: Any) -> "Vector":
        return self._either(self.builder.fsub, self.builder.sub, other)

    def __rsub__(self, other: Any) -> "Vector":
        return self._reflected(self.builder.fsub if self.is_float else self.builder.sub, other)

    def __mul__(self, other: Any) -> "Vector":
        return self._either(self.builder.fmul, self.builder.mul, other)

    def __truediv__(self, other: Any) -> "Vector":
        return self._apply(self.builder.fdiv, other)

    def __rtruediv__(self, other: Any) -> "Vector":
        return self._reflected(self.builder.fdiv, other)

    def __and__(self, other: Any) -> "Vector":
        return self._apply(self.builder.and_, other)

    def __or__(self, other: Any) -> "Vector":
        return self._apply(self.builder.or_, other)

    def __xor__(self, other: Any) -> "Vector":
        return self._apply(self.builder.xor, other)

    def __lshift__(self, other: Any) -> "Vector":
        return self._apply(self.builder.shl, other)

    def __rshift__(self, other: Any) -> "Vector":
        return self._apply(self.builder.lshr, other)

    def shift_right_signed(self, count: int) -> "Vector":
        """Return the integers divided by 2**count, rounded down."""
        return self._apply(self.builder.ashr, count)

    def _compare(self, operator: str, other: Any) -> Condition:
        compare = self.builder.fcmp_ordered if self.is_float else self.builder.icmp_signed
        return Condition(self.builder, compare(operator, self.llvm, self._operand(other)))

    def __lt__(self, other: Any) -> Condition:
        return self._compare("<", other)

    def __gt__(self, other: Any) -> Condition:
        return self._compare(">", other)

    def __ge__(self, other: Any) -> Condition:
        return self._compare(">=", other)

    def equals(self, other: Any) -> Condition:
        """Return, for each lane, True if it equals that of `other`. False if one of them is NaN."""
        return self._compare("==", other)

    def exceeds_or_nan(self, other: Any) -> Condition:
        """Return, for each float32 lane, True if it is larger than that of `other`, or one of them is NaN."""
        return Condition(self.builder, self.builder.fcmp_unordered(">", self.llvm, self._operand(other)))

    def is_nan(self) -> Condition:
        """Return, for each lane, True if it is NaN."""
        return Condition(self.builder, self.builder.fcmp_unordered("uno", self.llvm, self.llvm))

    def maximum(self, other: Any) -> "Vector":
        """Return the larger value in each lane; that of `other` if one of them is NaN."""
        result: Vector = (self > other).select(self, other)
        return result

    def minimum(self, other: Any) -> "Vector":
        """Return the smaller value in each lane; that of `other` if one of them is NaN."""
        result: Vector = (self < other).select(self, other)
        return result

    def multiply_add(self, factor: Any, addend: "Vector") -> "Vector":
        """Return self * factor + addend, in one instruction if the CPU has it."""
        name = f"llvm.fmuladd.v{self.lanes}f32"
        operands = (self.llvm, self._operand(factor), addend.llvm)
        return self._new(call_intrinsic(self.builder, name, self.llvm.type, *operands))

    def bits_as(self, element: Any, lanes: int | None = None) -> "Vector":
        """Return the same bits as a vector of another type. `lanes`: number of lanes, by default unchanged."""
        return self._new(self.builder.bitcast(self.llvm, vector_type(element, lanes or self.lanes)))

    def to_float(self, *, is_signed: bool = True) -> "Vector":
        """Convert integers to the nearest float32."""
        convert = self.builder.sitofp if is_signed else self.builder.uitofp
        return self._new(convert(self.llvm, vector_type(FLOAT, self.lanes)))

    def widened(self, element: Any) -> "Vector":
        """Convert to a wider type: float16 to float32, float32 to float64, or integers with zero extension."""
        widen = self.builder.fpext if self.element in (HALF, FLOAT) else self.builder.zext
        return self._new(widen(self.llvm, vector_type(element, self.lanes)))

    def narrowed(self, element: Any) -> "Vector":
        """Return the low bits of each integer, as a narrower integer type, or float64 rounded to float32."""
        narrow = self.builder.fptrunc if self.is_float else self.builder.trunc
        return self._new(narrow(self.llvm, vector_type(element, self.lanes)))

    def shuffled(self, lanes: Items[int], other: "Vector | None" = None) -> "Vector":
        """Return a vector of the chosen lanes. Lanes of `other` are numbered after those of this vector."""
        chosen = ir.Constant(vector_type(INT32, len(lanes)), list(lanes))
        return self._new(self.builder.shuffle_vector(self.llvm, (other or self).llvm, chosen))

    def parts(self, lanes: int) -> "list[Vector]":
        """Split into vectors of `lanes` lanes."""
        if lanes == self.lanes:
            return [self]
        return [self.shuffled(range(first, first + lanes)) for first in range(0, self.lanes, lanes)]

    def lane(self, index: int) -> Float:
        """Return one lane of a float32 vector."""
        return Float(self.builder, self.builder.extract_element(self.llvm, ir.Constant(INT32, index)))

    def _reduced(self, join: "Callable[[Vector, Vector], Vector]") -> Float:
        """Reduce all lanes to one with `join`, as a binary tree."""
        value, stride = self, self.lanes // 2
        while stride:
            value = join(value, value.shuffled([lane ^ stride for lane in range(self.lanes)]))
            stride //= 2
        return value.lane(0)

    def sum(self) -> Float:
        """Return the sum of all float32 lanes."""
        return self._reduced(lambda a, b: a + b)

    def largest(self) -> Float:
        """Return the largest float32 lane. If a lane is NaN, the result is NaN or the largest of the others."""
        return self._reduced(lambda a, b: a.maximum(b))

    def smallest(self) -> Float:
        """Return the smallest float32 lane. If a lane is NaN, the result is NaN or the smallest of the others."""
        return self._reduced(lambda a, b: a.minimum(b))


def joined(vectors: Items[Vector]) -> Vector:
    """Return one vector with the lanes of all vectors in order. The number of vectors must be a power of two."""
    parts = list(vectors)
    while len(parts) > 1:
        lanes = range(2 * parts[0].lanes)
        parts = [first.shuffled(lanes, second) for first, second in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def splat(builder: Any, scalar: Any, lanes: int) -> Vector:
    """Return a vector with the LLVM value `scalar` in every lane."""
    kind = vector_type(scalar.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(INT32, 0))
    chosen = ir.Constant(vector_type(INT32, lanes), [0] * lanes)
    return Vector(builder, builder.shuffle_vector(single, single, chosen))


def call_intrinsic(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    """Call the LLVM intrinsic or C function `name` with LLVM values; declares it in the module if necessary."""
    function = builder.module.globals.get(name)
    if function is None:
        signature = ir.FunctionType(result, [operand.type for operand in operands])
        function = ir.Function(builder.module, signature, name)
    return builder.call(function, operands)
