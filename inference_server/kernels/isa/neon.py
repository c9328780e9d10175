"""NEON of Armv8.0: Raspberry Pi 4, Graviton 1."""

from typing import TYPE_CHECKING

from inference_server.kernels.emit.values import INT8, INT16, Vector, vector_type
from inference_server.kernels.isa.instruction_set import ARM, InstructionSet, Tiling

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class Neon(InstructionSet):
    """Multiplies bytes with smull and adds the products in pairs."""

    name = "neon"
    architecture = ARM
    llvm_cpu = "generic"
    llvm_features = "+neon"
    required: tuple[str, ...] = ("neon",)
    lanes = 4
    unsigned_codes = False
    int8_tiling = Tiling(1, (1, 2))
    int4_tiling = Tiling(1, (1, 2))
    bf16_tiling = Tiling(1, (1, 2, 4))

    def multiply_codes(
        self, code: "Code", total: Vector, weights: list[Vector], inputs: list[Vector], are_nibbles: bool
    ) -> Vector:
        """See InstructionSet."""
        for weight, digits in zip(weights, inputs, strict=True):
            halves = zip(*(each.bits_as(INT8, 16).parts(8) for each in (weight, digits)), strict=True)
            sums = [self._pair_sums(code, *half) for half in halves]
            name = "llvm.aarch64.neon.addp.v4i32"
            total = total + Vector(code.builder, code.intrinsic(name, total.llvm.type, *sums))
        return total

    def _pair_sums(self, code: "Code", weights: Vector, digits: Vector) -> Vector:
        """Return the sums of neighbouring products of 8 bytes each, as 4 int32."""
        shorts, four = vector_type(INT16, 8), code.ints(0, 4).llvm.type
        products = Vector(code.builder, code.intrinsic("llvm.aarch64.neon.smull.v8i16", shorts, weights, digits))
        return Vector(code.builder, code.intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", four, products))
