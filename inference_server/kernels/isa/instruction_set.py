"""Defines the interface of an instruction set, with default operations that run on every CPU.

Kernels are written once, for vectors of 16 lanes. An instruction set defines the two operations that determine their
speed, `multiply_codes` and `multiply_pairs`. It also defines how many rows and panels have sums that fit into its
registers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from inference_server.kernels.emit.elements import bf16_bits
from inference_server.kernels.emit.types import FLOAT, INT8, INT16, INT32
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.isa.vector_int4 import Int4Unit
from inference_server.kernels.isa.vector_units import Bf16Unit, Int8Unit

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code

X86, ARM = "x86_64", "aarch64"


@dataclass(frozen=True, slots=True)
class Tiling:
    """The sizes of the blocks in which a product is computed.

    Attributes:
        panels: Panels of 16 outputs in a block, 1 or 2. A block of a single row always has one panel.
        rows: The numbers of rows that a block can have, in ascending order, starting with 1.
    """

    panels: int
    rows: tuple[int, ...]


class InstructionSet:
    """Base class of instruction sets: emits generic code that LLVM translates for any CPU.

    Subclasses override methods.
    """

    name = "generic"
    architecture = X86
    lanes = 8  # float32 lanes of a vector register
    # Weights of int8 are stored as code + 128, for instructions that multiply unsigned by signed bytes.
    unsigned_codes = True
    # True if `multiply_pairs` multiplies bfloat16 without widening it first.
    multiplies_bf16 = False
    # Consecutive words (int32) of activations that a product loads at a time: 1, 2 or 4.
    words_at_once = 1
    # Vectors of int8 weights for each call of `multiply_codes`: 1, 2 or 4, at most `words_at_once`.
    codes_at_once = 1
    # Smallest number of rows for which a product is faster if its int4 weights are widened to bfloat16; None: never.
    min_rows_widened: int | None = None
    # The classes that emit the matrix products. AMX has other classes, for its tile registers.
    bf16_unit = Bf16Unit
    int8_unit = Int8Unit
    int4_unit = Int4Unit
    int8_tiling = Tiling(1, (1, 2))
    int4_tiling = Tiling(1, (1, 2, 4))
    bf16_tiling = Tiling(1, (1, 2, 4))

    @property
    def cached_bf16_tiling(self) -> Tiling:
        """Return the tiling for weights that are in the core's cache."""
        return self.bf16_tiling

    llvm_cpu = "x86-64-v3"  # LLVM's name of the baseline: the simplest CPU with this instruction set
    llvm_features = ""  # features in addition to those of `llvm_cpu`
    # LLVM's names of the features that a CPU must have.
    required: tuple[str, ...] = ()

    def multiply_codes(
        self, code: "Code", total: Vector, weights: list[Vector], inputs: list[Vector], are_nibbles: bool
    ) -> Vector:
        """Return total + the sums of the products of 4 consecutive int8 in each lane, over all pairs of vectors.

        Args:
            code: The function to append to.
            total: int32, `lanes` lanes.
            weights: Vectors of int32 lanes with 4 codes each: unsigned if `unsigned_codes`, otherwise signed.
            inputs: Vectors of int32 lanes with 4 signed digits each, from -64 to 63.
            are_nibbles: True if the codes are 0 to 15, and `weights` has at most 8 vectors.
        """
        lanes = total.lanes
        widen = _zero_extended if self.unsigned_codes or are_nibbles else _sign_extended
        for weight, digits in zip(weights, inputs, strict=True):
            wide = widen(weight.bits_as(INT8, 4 * lanes)) * _sign_extended(digits.bits_as(INT8, 4 * lanes))
            for byte in range(4):
                total = total + wide.shuffled(range(byte, 4 * lanes, 4))
        return total

    def load_words(self, code: "Code", address: Int, count: int, lanes: int) -> list[Vector]:
        """Load `count` consecutive int32, each into every lane of a vector."""
        return [code.load_splat(address + 4 * index, INT32, lanes) for index in range(count)]

    def load_pairs(self, code: "Code", address: Int, count: int, lanes: int) -> list[Any]:
        """Load `count` consecutive pairs of bfloat16, and copy each pair to all lanes of a vector for `multiply_pairs`."""
        return [widened_pair(word) for word in self.load_words(code, address, count, lanes)]

    def prepare_pairs(self, code: "Code", pairs: Vector) -> Any:
        """Return weights, two bfloat16 in each int32 lane, in the form that `multiply_pairs` expects."""
        return widened_pair(pairs)

    def multiply_pairs(self, code: "Code", total: Vector, weights: Any, inputs: Any) -> Vector:
        """Return total + the products of two bfloat16 in each lane, float32."""
        even, odd = weights
        result: Vector = odd.multiply_add(inputs[1], even.multiply_add(inputs[0], total))
        return result

    def to_bf16(self, code: "Code", value: Vector) -> Vector:
        """Round float32 to the nearest bfloat16, ties to even. Returns int16 lanes with the bits. NaN stays NaN."""
        return (bf16_bits(value) >> 16).narrowed(INT16)

    def after(self, code: "Code", address: Int, values: list[Vector]) -> Int:
        """Return the same address in a form that keeps LLVM from loading from it before `values` are computed.

        Otherwise LLVM places loads as early as possible, and the loaded values do not fit into the registers. The CPU
        itself may still load earlier. The default implementation leaves the order of loads to LLVM.
        """
        return address

    def pause(self, code: "Code") -> None:
        """Let a waiting thread rest for some cycles, without leaving its core."""

    def function_attributes(self) -> dict[str, str]:
        """Return LLVM attributes of every function, by name."""
        return {}


def _zero_extended(values: Vector) -> Vector:
    return values.widened(INT32)


def _sign_extended(values: Vector) -> Vector:
    return Vector(values.builder, values.builder.sext(values.llvm, ir.VectorType(INT32, values.lanes)))


def widened_pair(pairs: Vector) -> tuple[Vector, Vector]:
    """Return the first and the second bfloat16 of each lane as float32."""
    return (pairs << 16).bits_as(FLOAT), (pairs & -65536).bits_as(FLOAT)
