"""AVX512 with VNNI and BF16: Cooper Lake, Zen 4 and newer, Sapphire Rapids and newer."""

from typing import TYPE_CHECKING, Any

from llvmlite import ir

from inference_server.kernels.emit.types import BFLOAT16, INT16, vector_type
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.isa.avx512_vnni import Avx512Vnni
from inference_server.kernels.isa.instruction_set import Tiling

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class Avx512Bf16(Avx512Vnni):
    """Multiplies and adds two bfloat16 in each lane with one instruction, vdpbf16ps."""

    name = "avx512-bf16"
    llvm_cpu = "cooperlake"
    required: tuple[str, ...] = (*Avx512Vnni.required, "avx512bf16")
    multiplies_bf16 = True
    min_rows_widened = 128

    @property
    def cached_bf16_tiling(self) -> Tiling:
        """Return the tiling for cached weights: one panel and up to 12 rows.

        With this tiling, 105 pairs of numbers are multiplied per ns, and 97 with `bf16_tiling` (AMD EPYC, Zen 4).
        Weights that are not cached are read faster from two panels at a time.
        """
        return Tiling(1, (1, 2, 4, 8, 12))

    def load_pairs(self, code: "Code", address: Int, count: int, lanes: int) -> list[Any]:
        """See InstructionSet."""
        return list(self.load_words(code, address, count, lanes))

    def prepare_pairs(self, code: "Code", pairs: Vector) -> Any:
        """See InstructionSet."""
        return pairs

    def multiply_pairs(self, code: "Code", total: Vector, weights: Any, inputs: Any) -> Vector:
        """See InstructionSet. The instruction vcvtneps2bf16 treats denormals as zeros."""
        operands = [each.bits_as(BFLOAT16, 2 * total.lanes) for each in (weights, inputs)]
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        return Vector(code.builder, code.intrinsic(name, total.llvm.type, total, *operands))

    def to_bf16(self, code: "Code", value: Vector) -> Vector:
        """See InstructionSet. The instruction treats denormals as zeros."""
        narrow = Vector(code.builder, code.builder.fptrunc(value.llvm, vector_type(BFLOAT16, value.lanes)))
        return Vector(code.builder, code.builder.bitcast(narrow.llvm, ir.VectorType(INT16, value.lanes)))
