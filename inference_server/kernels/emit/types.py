"""Defines the LLVM types that generated code uses."""

from typing import Any

from llvmlite import ir

FLOAT, HALF, DOUBLE = ir.FloatType(), ir.HalfType(), ir.DoubleType()
INT64, INT32, INT16, INT8, INT1 = (ir.IntType(bits) for bits in (64, 32, 16, 8, 1))


class Bfloat16(ir.Type):  # type: ignore[misc]
    """LLVM's type bfloat, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bfloat16)

    def __hash__(self) -> int:
        return hash(Bfloat16)


BFLOAT16 = Bfloat16()


def vector_type(element: Any, lanes: int) -> Any:
    """Return LLVM's type of a vector of `lanes` elements."""
    return ir.VectorType(element, lanes)
