"""AVX2 with VNNI: for example Intel's laptop CPUs since Alder Lake."""

from typing import TYPE_CHECKING

from inference_server.kernels.emit.values import Vector
from inference_server.kernels.isa.avx2 import Avx2
from inference_server.kernels.isa.instruction_set import Tiling

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class AvxVnni(Avx2):
    """Multiplies and adds four bytes in each lane with one instruction, vpdpbusd, on 256-bit vectors.

    LLVM uses the encoding that the CPU requires: that of AVX-VNNI, or that of AVX512 on CPUs that have only the latter.
    """

    name = "avx-vnni"
    llvm_cpu = "haswell"
    llvm_features = "+avxvnni"
    required: tuple[str, ...] = ("avxvnni", "avx2", "fma", "f16c")
    int8_tiling = Tiling(1, (1, 2, 3))
    multiply_add_bytes = "llvm.x86.avx512.vpdpbusd.256"

    def multiply_codes(
        self, code: "Code", total: Vector, weights: list[Vector], inputs: list[Vector], are_nibbles: bool
    ) -> Vector:
        """See InstructionSet."""
        for weight, digits in zip(weights, inputs, strict=True):
            total = Vector(
                code.builder, code.intrinsic(self.multiply_add_bytes, total.llvm.type, total, weight, digits)
            )
        return total


class AvxVnniInAvx512(AvxVnni):
    """The same code for CPUs with AVX512-VNNI but without AVX-VNNI's encoding (Zen 4), so that tests can run there."""

    llvm_cpu = "haswell"
    llvm_features = "+avx512f,+avx512vl,+avx512vnni,+prefer-256-bit"
    required: tuple[str, ...] = ("avx512vnni", "avx512vl", "avx2", "fma", "f16c")

    def function_attributes(self) -> dict[str, str]:
        """Keep LLVM from using registers of 512 bits."""
        widths = {"min-legal-vector-width": "256", "prefer-vector-width": "256"}
        return super().function_attributes() | widths
