"""NEON of Armv8.0: Raspberry Pi 4, Graviton 1."""

from typing import TYPE_CHECKING, Any

from llvmlite import ir

from inference_server.kernels.emit.types import INT8, INT16, INT32, INT64, vector_type
from inference_server.kernels.emit.values import Int, Vector, call_intrinsic
from inference_server.kernels.isa.instruction_set import ARM, InstructionSet, Tiling, widened_pair

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
    int8_tiling = Tiling(1, (1,))
    int4_tiling = Tiling(1, (1,))
    bf16_tiling = Tiling(1, (1, 2, 3))
    words_at_once = 4
    codes_at_once = 4

    def load_words(self, code: "Code", address: Int, count: int, lanes: int) -> list[Vector]:
        """See InstructionSet. Loads four words together, because instructions can multiply by one lane of a register."""
        if lanes != 4 or count % 4:
            return super().load_words(code, address, count, lanes)
        fours = [code.load_vector(address + 16 * index, INT32, 4) for index in range(count // 4)]
        return [four.shuffled([lane] * 4) for four in fours for lane in range(4)]

    def load_pairs(self, code: "Code", address: Int, count: int, lanes: int) -> list[Any]:
        """See InstructionSet. Loads and widens four words together, then selects their lanes."""
        if lanes != 4 or count % 4:
            return super().load_pairs(code, address, count, lanes)
        fours = [widened_pair(code.load_vector(address + 16 * index, INT32, 4)) for index in range(count // 4)]
        return [tuple(half.shuffled([lane] * 4) for half in four) for four in fours for lane in range(4)]

    def after(self, code: "Code", address: Int, values: list[Vector]) -> Int:
        """See InstructionSet. Emits empty inline assembly with `values` as operands, which LLVM does not optimise."""
        if not values:
            return address
        kind = ir.FunctionType(INT64, [INT64, *(value.llvm.type for value in values)])
        assembly = ir.InlineAsm(kind, "", "=r,0" + ",w" * len(values))
        return Int(code.builder, code.builder.call(assembly, [address.llvm, *(value.llvm for value in values)]))

    def multiply_codes(
        self, code: "Code", total: Vector, weights: list[Vector], inputs: list[Vector], are_nibbles: bool
    ) -> Vector:
        """See InstructionSet.

        Digits are from -64 to 63 and codes from -127 to 127, so sums of 4 products fit into int16. With nibbles, so do
        sums of 8 products.
        """
        four = code.ints(0, 4).llvm.type
        low: Vector | None = None
        high: Vector | None = None
        for weight, digits in zip(weights, inputs, strict=True):
            halves = zip(*(each.bits_as(INT8, 16).parts(8) for each in (weight, digits)), strict=True)
            products = [self._products(code, *half) for half in halves]
            low = products[0] if low is None else low + products[0]
            high = products[1] if high is None else high + products[1]
        name = "llvm.aarch64.neon.saddlp.v4i32.v8i16"
        sums = [Vector(code.builder, code.intrinsic(name, four, half)) for half in (low, high) if half is not None]
        return total + Vector(code.builder, code.intrinsic("llvm.aarch64.neon.addp.v4i32", four, *sums))

    def _products(self, code: "Code", weights: Vector, digits: Vector) -> Vector:
        """Return the products of 8 pairs of bytes, int16."""
        shorts = vector_type(INT16, 8)
        return Vector(code.builder, code.intrinsic("llvm.aarch64.neon.smull.v8i16", shorts, weights, digits))

    def pause(self, code: "Code") -> None:
        """Rest until earlier instructions are done. The hint `yield` does nothing on most CPUs."""
        call_intrinsic(code.builder, "llvm.aarch64.isb", ir.VoidType(), ir.Constant(INT32, 15))
