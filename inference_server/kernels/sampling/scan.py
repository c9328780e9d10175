"""Defines the data of one row and the loop over its logits, which the parts of the sampling kernel share.

record.py describes the words of a row's record. While a thread works on a row, the intermediate results are in memory
on the thread's stack, the row's state.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TypeVar

from inference_server.kernels.emit.code import LANES, Code
from inference_server.kernels.emit.types import INT32
from inference_server.kernels.emit.values import Condition, Float, Int, Vector
from inference_server.kernels.sampling.record import BLOCK

# Byte offsets in the state. Numbers are float32, token ids are int64.
BEST_TOKEN, LIMIT_TOKEN = 0, 8
BEST, SECOND, THRESHOLD = 16, 20, 24  # scores
LIMIT = 28  # the logit of LIMIT_TOKEN
PEAK = 32  # the largest logit
FACTOR = 36  # of the weights exp((logit - PEAK) * FACTOR): 1 / temperature, or 1 for log probabilities
MASS, MASS_BEFORE = 40, 44  # sums of the weights of the tokens before LIMIT_TOKEN, and of those before BEST_TOKEN
STATE_BYTES = 64

INFINITY = float("inf")
Joined = TypeVar("Joined", Condition, Vector)


@dataclass(frozen=True, slots=True)
class Scan:
    """The addresses and the vocabulary size that every part of the kernel receives.

    Attributes:
        code: The function to append to.
        record: Address of the row's record.
        state: Address of the row's state.
        tables: Address of the first half of the token hashes, int32; the second half follows.
        vocab_size: Number of tokens, at least BLOCK.
    """

    code: Code
    record: Int
    state: Int
    tables: Int
    vocab_size: Int

    def call(self, name: str, emit: "Callable[[Scan], None]") -> None:
        """Call a part of the kernel as a function that is not inlined."""

        def body(code: Code, *addresses: Int) -> None:
            emit(Scan(code, *addresses))

        self.code.call(name, body, self.record, self.state, self.tables, self.vocab_size)

    def word(self, index: int) -> Int:
        """Return a word of the record."""
        return self.code.argument(self.record, index)

    def number(self, index: int) -> Float:
        """Return a float64 of the record, as float32."""
        return self.code.float_argument(self.record, index)

    def float_at(self, offset: int) -> Float:
        """Return a float32 of the state."""
        return self.code.load_float(self.state + offset)

    def token_at(self, offset: int) -> Int:
        """Return a token id of the state."""
        return self.code.load_int64(self.state + offset)

    def set(self, offset: int, value: Float | Int) -> None:
        """Replace a number or token id of the state."""
        self.code.store(value, self.state + offset)

    def blocks(self, body: Callable[[Int, "Int | None"], None]) -> None:
        """Emit a loop over blocks of tokens: body(first token, None).

        If the vocabulary is not whole blocks, the last block overlaps the one before it. It is emitted as
        body(first token, first token that is not part of another block).
        """
        whole = self.vocab_size - self.vocab_size % BLOCK
        with self.code.loop(0, whole, BLOCK) as first:
            body(first, None)
        with self.code.when(whole < self.vocab_size):
            body(self.vocab_size - BLOCK, whole)

    def vectors(self, first: Int) -> list[Int]:
        """Return the first token id of each vector of the block that begins at token `first`."""
        return [first + lane for lane in range(0, BLOCK, LANES)]

    def lanes_from(self, first: Int, start: Int) -> Condition:
        """Return, for the tokens in the lanes of a vector that begins with token `first`, whether they are >= start."""
        return self._lane_numbers() >= (start - first).splat(INT32, LANES)

    def is_before(self, logits: Vector, first: Int, limit: "Limit") -> Condition:
        """Return, for each lane of a vector that begins with token `first`, whether its token precedes the limit.

        Tokens are in the order of their logits, the largest first. Of equal logits, the smallest token id is first.
        """
        has_smaller_id = self._lane_numbers() < (limit.token - first).splat(INT32, LANES)
        return logits.exceeds_or_nan(has_smaller_id.select(limit.below, limit.logit))

    def limit(self, logit: Float, token: Int) -> "Limit":
        """Return a limit for `is_before`: a token and its logit."""
        # Below -infinity this is NaN. `is_before` is then true for every token with a smaller id.
        below = from_ordinal(ordinal(logit) - 1)
        return Limit(logit.splat(LANES), below.splat(LANES), token)

    def _lane_numbers(self) -> Vector:
        return self.code.ints(list(range(LANES)))


@dataclass(frozen=True, slots=True)
class Limit:
    """A token with which `Scan.is_before` compares other tokens.

    Attributes:
        logit: The token's logit, in every lane.
        below: The largest float32 below the logit, in every lane.
        token: The token's id.
    """

    logit: Vector
    below: Vector
    token: Int


def ordinal(number: Float) -> Int:
    """Return an integer that grows with the number, by 1 for the next float32. It is 0 for both zeros."""
    bits = number.bits()
    result: Int = (bits < 0).select(0 - (bits & 0x7FFFFFFF), bits)
    return result


def from_ordinal(value: Int) -> Float:
    """Return the float32 with this ordinal."""
    bits: Int = (value < 0).select(0 - value - 2**31, value)
    return bits.bits_as_float()


def paired(values: Items[Joined], join: Callable[[Joined, Joined], Joined]) -> Joined:
    """Join the four values of a block as a binary tree, whose halves the CPU can compute at the same time."""
    first, second, third, fourth = values
    return join(join(first, second), join(third, fourth))
