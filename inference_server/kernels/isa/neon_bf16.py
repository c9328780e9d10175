"""NEON with dot products and bfloat16, of Armv8.6: Graviton 3 and newer, Apple M2 and newer."""

from typing import TYPE_CHECKING, Any

from inference_server.kernels.emit.types import BFLOAT16, INT16, vector_type
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.isa.instruction_set import Tiling
from inference_server.kernels.isa.neon_dotprod import NeonDotprod

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class NeonBf16(NeonDotprod):
    """Multiplies and adds two bfloat16 in each lane with one instruction, bfdot."""

    name = "neon-bf16"
    llvm_features = "+neon,+dotprod,+bf16"
    required: tuple[str, ...] = ("neon", "dotprod", "bf16")
    multiplies_bf16 = True
    bf16_tiling = Tiling(1, (1, 2, 4))

    def load_pairs(self, code: "Code", address: Int, count: int, lanes: int) -> list[Any]:
        """See InstructionSet. Loads two pairs at a time: with four, LLVM does not emit the by-lane form of bfdot."""
        twos = [code.load_vector(address + 8 * index, BFLOAT16, 4) for index in range(count // 2)]
        return [two.shuffled([2 * pair, 2 * pair + 1] * 4) for two in twos for pair in range(2)]

    def prepare_pairs(self, code: "Code", pairs: Vector) -> Any:
        """See InstructionSet."""
        return pairs

    def multiply_pairs(self, code: "Code", total: Vector, weights: Any, inputs: Any) -> Vector:
        """See InstructionSet."""
        operands = [each.bits_as(BFLOAT16, 8) for each in (weights, inputs)]
        name = "llvm.aarch64.neon.bfdot.v4f32.v8bf16"
        return Vector(code.builder, code.intrinsic(name, total.llvm.type, total, *operands))

    def to_bf16(self, code: "Code", value: Vector) -> Vector:
        """See InstructionSet."""
        narrow = Vector(code.builder, code.builder.fptrunc(value.llvm, vector_type(BFLOAT16, value.lanes)))
        return Vector(code.builder, code.builder.bitcast(narrow.llvm, vector_type(INT16, value.lanes)))
