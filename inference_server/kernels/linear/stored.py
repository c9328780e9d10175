"""Reads weights in the number formats of GGUF files, and writes them in the layout of the linear layers' kernels.

A stored row consists of blocks with one group of 32 weights, or with eight. The argument block has an address for each
row, so that rows can be in any order. A row with the address 0 is padding: its weights are zeros.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager

from inference_server.kernels.attention.transposition import TILE_BYTES, transpose
from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.elements import element_bytes, store
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.types import FLOAT, HALF, INT8, INT32
from inference_server.kernels.emit.values import Int, Vector

GROUP = 32  # weights of a group
_HALF_GROUP = 16
_PANEL = 16  # outputs of a panel
_LINE_BYTES = 64  # a cache line, and a row of a transposed tile
_MAGIC = 12582912.0  # adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits
_TINY = 1.1754943508222875e-38  # the smallest normal float32

Decode = Callable[[Code, Int], Items[Vector]]  # decodes the block at an address to vectors of 16 float32


def _number(code: Code, address: Int) -> Vector:
    """Load one float16 into every lane, as float32."""
    return code.load_splat(address, HALF).widened(FLOAT)


def _nibbles(code: Code, address: Int) -> tuple[Vector, Vector]:
    """Load 32 codes of 4 bits: the low halves of 16 bytes, then the high halves."""
    codes = code.load_vector(address, INT8).widened(INT32)
    return codes & 15, codes >> 4


def _q4_0(code: Code, group: Int) -> tuple[Vector, Vector]:
    scale = _number(code, group)
    low, high = _nibbles(code, group + 2)
    return (low - 8).to_float() * scale, (high - 8).to_float() * scale


def _q4_1(code: Code, group: Int) -> tuple[Vector, Vector]:
    scale, minimum = _number(code, group), _number(code, group + 2)
    low, high = _nibbles(code, group + 4)
    return low.to_float() * scale + minimum, high.to_float() * scale + minimum


def _q8_0(code: Code, group: Int) -> tuple[Vector, Vector]:
    scale = _number(code, group)
    parts = [(code.load_vector(group + start, INT8).widened(INT32) ^ 128) - 128 for start in (2, 2 + _HALF_GROUP)]
    low, high = (part.to_float() * scale for part in parts)
    return low, high


def _byte(code: Code, address: Int) -> Vector:
    """Load one byte into every lane, as int32 from 0 to 255."""
    return code.load_splat(address, INT8).widened(INT32)


def k_factors(code: Code, block: Int, group: int) -> tuple[Vector, Vector]:
    """Return the scale and the minimum (to be subtracted) of one of 8 groups, in every lane.

    The 8 scales and 8 minima are stored with 6 bits each, in 12 bytes. They are multiplied by the block's two float16.
    """
    first, second = (_byte(code, block + (4 + group % 4 + 4 * part)) for part in (0, 1))
    if group < 4:
        scale, minimum = first & 63, second & 63
    else:
        third = _byte(code, block + (8 + group))
        scale, minimum = (third & 15) | ((first >> 6) << 4), (third >> 4) | ((second >> 6) << 4)
    return _number(code, block) * scale.to_float(), _number(code, block + 2) * minimum.to_float()


def _q4_k(code: Code, block: Int) -> Items[Vector]:
    return _k_weights(code, block, 16, None)


def _q5_k(code: Code, block: Int) -> Items[Vector]:
    return _k_weights(code, block, 48, 16)


def _k_weights(code: Code, block: Int, codes_at: int, high_at: int | None) -> Items[Vector]:
    """Return 256 weights. `codes_at`, `high_at`: byte offsets of the low 4 bits and of the fifth bits of the codes."""
    weights = []
    for group in range(8):
        scale, minimum = k_factors(code, block, group)
        for half in (0, 16):
            low = code.load_vector(block + (codes_at + group // 2 * 32 + half), INT8).widened(INT32)
            codes = low >> 4 if group % 2 else low & 15
            if high_at is not None:
                high = code.load_vector(block + (high_at + half), INT8).widened(INT32)
                codes = codes | (((high >> group) & 1) << 4)
            weights.append(codes.to_float() * scale - minimum)
    return weights


def _q6_k(code: Code, block: Int) -> Items[Vector]:
    scale, weights = _number(code, block + 208), []
    for index in range(16):  # 16 weights each
        part, quarter, half = index // 8, index // 2 % 4, index % 2 * 16
        low = code.load_vector(block + (part * 64 + quarter % 2 * 32 + half), INT8).widened(INT32)
        high = code.load_vector(block + (128 + part * 32 + half), INT8).widened(INT32)
        codes = (low >> 4 if quarter > 1 else low & 15) | (((high >> (2 * quarter)) & 3) << 4)
        own = (_byte(code, block + (192 + index)) ^ 128) - 128
        weights.append((codes - 32).to_float() * (scale * own.to_float()))
    return weights


# For each of GGML's names (arguments.STORED_FORMATS): the function that decodes a block, the block's size in bytes, and
# its number of groups of 32 weights.
FORMATS: dict[str, tuple[Decode, int, int]] = {
    "q4_0": (_q4_0, 18, 1),
    "q4_1": (_q4_1, 20, 1),
    "q8_0": (_q8_0, 34, 1),
    "q4_k": (_q4_k, 144, 8),
    "q5_k": (_q5_k, 176, 8),
    "q6_k": (_q6_k, 210, 8),
}


class Rows:
    """The arguments of a kernel, and its loops over rows and groups."""

    def __init__(self, code: Code, block: Int, name: str) -> None:
        self.addresses, self.out = code.argument(block, 3), code.argument(block, 4)
        self.scales, self.items, self.groups = code.argument(block, 5), code.argument(block, 6), code.argument(block, 7)
        self._decode, self._block_bytes, self._block_groups = FORMATS[name]
        self._code = code

    @contextmanager
    def each_output(self, panel: Int) -> Iterator[tuple[Int, Int]]:
        """Emit a loop over a panel's outputs, without padding.

        Yields the output's index in the panel, and its row's address.
        """
        code = self._code
        with code.loop(0, _PANEL) as output:
            row = code.load_int64(self.addresses + (panel * _PANEL + output) * 8)
            with code.when(row > 0):
                yield output, row

    def each_half_group(self, row: Int, use: Callable[[Int, Vector], None]) -> None:
        """Emit a loop over a row's half groups: `use` receives the index of a half group, and its 16 weights."""
        with self._code.loop(0, self.groups // self._block_groups) as block:
            for half, weights in enumerate(self._decode(self._code, row + block * self._block_bytes)):
                use(block * (2 * self._block_groups) + half, weights)

    def write_panels(
        self, block: Int, weight_bytes: int, begin: Callable[[Int], None], convert: Callable[[Int, Vector], Vector]
    ) -> None:
        """Emit a loop over panels, which writes their weights.

        The weights of a few blocks are decoded output by output into a buffer. The buffer is then transposed in registers,
        so that whole cache lines are stored. One thread writes a whole panel.

        Args:
            block: The argument block.
            weight_bytes: Size of a written weight.
            begin: Called with the number of a panel before its weights are decoded.
            convert: Returns the words of 4 bytes to write, for the number of an output in its panel and 16 weights.
        """
        code = self._code
        blocks = max(1, _LINE_BYTES // (weight_bytes * GROUP * self._block_groups))  # number of blocks in a span
        span_bytes = blocks * self._block_groups * GROUP * weight_bytes
        buffer = code.stack(_PANEL * span_bytes)
        with code.work_items(block, self.items) as panel:
            begin(panel)
            with code.loop(0, _PANEL) as output:
                row = code.load_int64(self.addresses + (panel * _PANEL + output) * 8)
                with code.when(row <= 0), code.loop(0, span_bytes, _LINE_BYTES) as line:
                    code.store(code.floats(0.0), buffer + output * span_bytes + line, 4)
            target = self.out + panel * self.groups * (GROUP * _PANEL * weight_bytes)
            with code.loop(0, self.groups // (blocks * self._block_groups)) as span:
                with self.each_output(panel) as (output, row):
                    for number in range(blocks):
                        weights = self._decode(code, row + (span * blocks + number) * self._block_bytes)
                        place = buffer + output * span_bytes + number * (span_bytes // blocks)
                        for half, part in enumerate(weights):
                            words = convert(output, part)
                            code.store(words, place + half * (_HALF_GROUP * weight_bytes), 4)
                for tile in range(span_bytes // _LINE_BYTES):
                    place = target + span * (_PANEL * span_bytes) + tile * TILE_BYTES
                    transpose(code, buffer + tile * _LINE_BYTES, code.integer(span_bytes), place)


def make_int8(name: str, is_like_bitsandbytes: bool) -> Emit:
    """Return the function that emits the kernel that writes panels of int8 codes, and a scale for each output.

    Args:
        name: A key of FORMATS.
        is_like_bitsandbytes: True to round weights to float16 first, and to multiply them by the inverse of their scale
            instead of dividing them.
    """

    def stored_int8(code: Code, block: Int) -> None:
        rows = Rows(code, block, name)
        factors = code.stack(_PANEL * 4)  # for each output of a panel, the factor or divisor of its weights

        def weights_of(weights: Vector) -> Vector:
            return weights.narrowed(HALF).widened(FLOAT) if is_like_bitsandbytes else weights

        def find_scales(panel: Int) -> None:
            with rows.each_output(panel) as (output, row):
                largest = code.variable(code.floats(0.0))

                def compare(_: Int, weights: Vector) -> None:
                    values = weights_of(weights)
                    magnitudes = (values.bits_as(INT32) & 0x7FFFFFFF).bits_as(FLOAT)
                    largest.set(largest.get().maximum(magnitudes))

                rows.each_half_group(row, compare)
                maximum = largest.get().largest()
                scale = maximum / 127.0
                # torch rounds twice when it divides a number by a tensor. This kernel must return the same bits.
                factor = (maximum > 0.0).select(1.0 / maximum * 127.0, code.number(0.0))
                if not is_like_bitsandbytes:
                    factor = scale = scale.maximum(code.number(_TINY))
                code.store(scale, rows.scales + (panel * _PANEL + output) * 4, 4)
                code.store(factor, factors + output * 4, 4)

        def convert(output: Int, weights: Vector) -> Vector:
            values, factor = weights_of(weights), code.load_splat(factors + output * 4, FLOAT)
            scaled = values * factor if is_like_bitsandbytes else values / factor
            codes = (scaled + _MAGIC).bits_as(INT32).narrowed(INT8)
            return (codes ^ -128 if code.isa.unsigned_codes else codes).bits_as(FLOAT, 4)

        rows.write_panels(block, 1, find_scales, convert)

    return stored_int8


def make_bf16(name: str) -> Emit:
    """Return the function that emits the kernel that writes panels of bfloat16 weights. `name`: a key of FORMATS."""

    def stored_bf16(code: Code, block: Int) -> None:
        def convert(_: Int, weights: Vector) -> Vector:
            return code.isa.to_bf16(code, weights).bits_as(FLOAT, 8)

        Rows(code, block, name).write_panels(block, 2, lambda panel: None, convert)

    return stored_bf16


def make_rows(name: str, is_bf16: bool) -> Emit:
    """Return the function that emits the kernel that writes rows of bfloat16 or float32. `name`: a key of FORMATS."""

    def stored_rows(code: Code, block: Int) -> None:
        rows = Rows(code, block, name)
        with code.work_items(block, rows.items) as output:
            row = code.load_int64(rows.addresses + output * 8)
            target = rows.out + output * rows.groups * (GROUP * element_bytes(is_bf16))

            def write(index: Int, weights: Vector) -> None:
                store(code, weights, target + index * (_HALF_GROUP * element_bytes(is_bf16)), is_bf16)

            rows.each_half_group(row, write)

    return stored_rows
