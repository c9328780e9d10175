"""Copies 4-bit weights of GGUF files into the layout of the int4 kernels.

Codes stay as they are; only their order changes. Each group of weights gets one scale and one minimum in float16. For
q4_k, both are products of stored numbers, rounded to float16. A panel has a record for each group of 32 inputs: 16
scales and 16 minima, then the codes of its 16 outputs (see linear/int4.py). The argument block is that of
linear/stored.py.
"""

from collections.abc import Callable, Iterator

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.types import FLOAT, HALF, INT8
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.linear.stored import FORMATS, Rows, k_factors

_OUTPUTS = 16  # outputs of a panel
_HALF_BYTES = 2  # bytes of a float16
_WORDS = 4  # words of 4 bytes in a group's codes
_CODES_AT = 2 * _OUTPUTS * _HALF_BYTES  # place of the codes in a record
_RECORD_BYTES = _CODES_AT + _WORDS * 4 * _OUTPUTS

# Scale and minimum, float16 in one lane or more, and 16 bytes of codes: byte i has input i in its low half, and input
# i + 16 in its high half.
_Group = tuple[Vector, Vector, Vector]
Read = Callable[[Code, Int], Iterator[_Group]]


def _q4_0(code: Code, group: Int) -> Iterator[_Group]:
    scale = code.load_splat(group, HALF)
    yield scale, (scale.widened(FLOAT) * -8.0).narrowed(HALF), code.load_vector(group + 2, INT8)


def _q4_1(code: Code, group: Int) -> Iterator[_Group]:
    yield code.load_splat(group, HALF), code.load_splat(group + 2, HALF), code.load_vector(group + 4, INT8)


def _q4_k(code: Code, block: Int) -> Iterator[_Group]:
    for group in range(8):
        scale, minimum = k_factors(code, block, group)
        low, high = (code.load_vector(block + (16 + group // 2 * 32 + half), INT8) for half in (0, 16))
        codes = (low >> 4) | (high & -16) if group % 2 else (low & 15) | (high << 4)
        yield scale.narrowed(HALF), (minimum * -1.0).narrowed(HALF), codes


READERS: dict[str, Read] = {"q4_0": _q4_0, "q4_1": _q4_1, "q4_k": _q4_k}


def make_int4(name: str) -> Emit:
    """Return the function that emits the kernel that writes panels of int4 records. `name`: a key of READERS."""
    _, block_bytes, block_groups = FORMATS[name]

    def stored_int4(code: Code, block: Int) -> None:
        rows = Rows(code, block, name)
        with code.work_items(block, rows.items) as panel, rows.each_output(panel) as (output, row):
            target = rows.out + panel * rows.groups * _RECORD_BYTES
            with code.loop(0, rows.groups // block_groups) as number:
                record = target + number * (block_groups * _RECORD_BYTES)
                for scale, minimum, codes in READERS[name](code, row + number * block_bytes):
                    for first, factor in ((0, scale), (_OUTPUTS * _HALF_BYTES, minimum)):
                        code.store(factor.shuffled([0]), record + first + output * _HALF_BYTES, _HALF_BYTES)
                    words = codes.bits_as(FLOAT, _WORDS)
                    for word in range(_WORDS):
                        place = record + (_CODES_AT + word * 4 * _OUTPUTS)
                        code.store(words.lane(word), place + output * 4, 4)
                    record = record + _RECORD_BYTES

    return stored_int4
