"""Parts of the sampling kernel that read a row's logits: the largest one, and the list of the likeliest tokens."""

from inference_server.kernels.emit.code import LANES
from inference_server.kernels.emit.values import INT32, Condition, Int
from inference_server.kernels.sampling.scan import (
    BEST_TOKEN,
    BLOCK,
    INFINITY,
    LOGITS,
    PEAK,
    TOP,
    TOP_SIZE,
    Scan,
)

_ENTRY = 8  # bytes of an entry of the list: the logit, float32, and the token, int32


def find_largest(scan: Scan) -> None:
    """Write the largest logit to PEAK, NaN if any logit is NaN, and its token, the first of equals, to BEST_TOKEN."""
    code, logits = scan.code, scan.word(LOGITS)
    largest, nan = code.variable(code.number(-INFINITY)), code.variable(code.number(0.0))
    largest_block = code.variable(code.integer(0))

    def block(first: Int, start: Int | None) -> None:
        place = logits + first * 4
        vectors = [code.load_floats(place + 4 * lane) for lane in range(0, BLOCK, LANES)]
        tests = [each.exceeds_or_nan(largest.get()) for each in vectors]
        with code.when(((tests[0] | tests[1]) | (tests[2] | tests[3])).any()):
            for each in vectors:
                with code.when(each.is_nan().any()):
                    nan.set(code.number(float("nan")))
            top = vectors[0].maximum(vectors[1]).maximum(vectors[2].maximum(vectors[3])).largest()
            with code.when(top > largest.get()):
                largest.set(top)
                largest_block.set(first)

    scan.blocks(block)
    token = code.variable(largest_block.get())
    end = largest_block.get() + (BLOCK - 1)

    def is_smaller() -> Condition:
        return code.load_float(logits + token.get() * 4).differs(largest.get()) & (token.get() < end)

    with code.repeat_while(is_smaller):
        token.set(token.get() + 1)
    scan.set(PEAK, largest.get() + nan.get())
    scan.set(BEST_TOKEN, token.get())


def list_top(scan: Scan) -> None:
    """Write the tokens with the largest logits to the list of the record, in the order of `Scan.is_before`.

    Entries for which no token with a finite logit is left have the token -1.
    """
    code, logits = scan.code, scan.word(LOGITS)
    top, size = scan.word(TOP), scan.word(TOP_SIZE)
    with code.loop(0, size) as index:
        code.store(code.number(-INFINITY), top + index * _ENTRY)
        code.store(code.ints(-1, 1), top + index * _ENTRY + 4)
    last = top + (size - 1) * _ENTRY

    def block(first: Int, start: Int | None) -> None:
        place = logits + first * 4
        tests = [code.load_floats(place + 4 * lane) > code.load_float(last) for lane in range(0, BLOCK, LANES)]
        with code.when(((tests[0] | tests[1]) | (tests[2] | tests[3])).any()):
            with code.loop(first if start is None else start, first + BLOCK) as token:
                _insert(scan, logits, token, top, last)

    scan.blocks(block)


def _insert(scan: Scan, logits: Int, token: Int, top: Int, last: Int) -> None:
    """Insert a token into the list if its logit is larger than the list's last one."""
    code = scan.code
    logit = code.load_float(logits + token * 4)
    with code.when(logit > code.load_float(last)):
        place = code.variable(last)

        def is_larger() -> Condition:
            before = (place.get() - _ENTRY).maximum(top)
            return (place.get() > top) & (logit > code.load_float(before))

        with code.repeat_while(is_larger):
            before = place.get() - _ENTRY
            code.store(code.load_int64(before), place.get())
            place.set(before)
        code.store(logit, place.get())
        code.store(token.splat(INT32, 1), place.get() + 4)
