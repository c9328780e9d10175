"""AVX2 with FMA: nearly all x86 CPUs since Haswell and Zen 1."""

from typing import TYPE_CHECKING

from inference_server.kernels.emit.types import INT8, INT16, vector_type
from inference_server.kernels.emit.values import Vector
from inference_server.kernels.isa.instruction_set import InstructionSet, Tiling

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class Avx2(InstructionSet):
    """Multiplies bytes with vpmaddubsw, whose sums of two products must fit into int16: digits of 7 bits ensure that."""

    name = "avx2"
    llvm_cpu = "haswell"
    required: tuple[str, ...] = ("avx2", "fma", "f16c")
    lanes = 8
    int8_tiling = Tiling(1, (1, 2))
    int4_tiling = Tiling(1, (1, 2, 4))
    bf16_tiling = Tiling(1, (1, 2, 4))
    multiply_bytes = "llvm.x86.avx2.pmadd.ub.sw"
    add_pairs = "llvm.x86.avx2.pmadd.wd"

    def multiply_codes(
        self, code: "Code", total: Vector, weights: list[Vector], inputs: list[Vector], are_nibbles: bool
    ) -> Vector:
        """See InstructionSet. With nibbles, sums over 8 vectors fit into int16 and are widened to int32 only once."""
        shorts = vector_type(INT16, 2 * total.lanes)
        ones = code.ints(1, 2 * total.lanes, INT16)
        sums: Vector | None = None
        for weight, digits in zip(weights, inputs, strict=True):
            operands = [each.bits_as(INT8, 4 * total.lanes) for each in (weight, digits)]
            products = Vector(code.builder, code.intrinsic(self.multiply_bytes, shorts, *operands))
            if are_nibbles:
                sums = products if sums is None else sums + products
            else:
                total = total + self._paired(code, products, ones, total)
        return total if sums is None else total + self._paired(code, sums, ones, total)

    def _paired(self, code: "Code", products: Vector, ones: Vector, like: Vector) -> Vector:
        """Return the sums of neighbouring int16, as int32."""
        return Vector(code.builder, code.intrinsic(self.add_pairs, like.llvm.type, products, ones))

    def pause(self, code: "Code") -> None:
        """Rest for about 25 ns (AMD EPYC, Zen 4), without taking resources from the core's other thread."""
        from llvmlite import ir

        code.intrinsic("llvm.x86.sse2.pause", ir.VoidType())

    def function_attributes(self) -> dict[str, str]:
        """Align each function's stack. Vectors on the stack that crossed cache lines made a kernel 5 times slower on Zen 4."""
        return {"stackrealign": ""}
