"""NEON with dot products, of Armv8.2: Graviton 2 and newer, Apple M1, Raspberry Pi 5."""

from typing import TYPE_CHECKING

from inference_server.kernels.emit.types import INT8
from inference_server.kernels.emit.values import Vector
from inference_server.kernels.isa.instruction_set import Tiling
from inference_server.kernels.isa.neon import Neon

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class NeonDotprod(Neon):
    """Multiplies and adds four bytes in each lane with one instruction, sdot."""

    name = "neon-dotprod"
    llvm_features = "+neon,+dotprod"
    required: tuple[str, ...] = ("neon", "dotprod")
    int8_tiling = Tiling(1, (1, 2))
    int4_tiling = Tiling(1, (1, 2))
    codes_at_once = 1

    def multiply_codes(
        self, code: "Code", total: Vector, weights: list[Vector], inputs: list[Vector], are_nibbles: bool
    ) -> Vector:
        """See InstructionSet."""
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        for weight, digits in zip(weights, inputs, strict=True):
            operands = [each.bits_as(INT8, 16) for each in (weight, digits)]
            total = Vector(code.builder, code.intrinsic(name, total.llvm.type, total, *operands))
        return total
