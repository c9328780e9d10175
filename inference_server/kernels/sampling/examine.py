"""Emits the parts of the sampling kernel that find a row's largest logit, and list its likeliest tokens."""

from inference_server.kernels.emit.types import INT32
from inference_server.kernels.emit.values import Condition, Int, Vector
from inference_server.kernels.sampling.record import BLOCK, LOGITS, TOP, TOP_SIZE
from inference_server.kernels.sampling.scan import BEST_TOKEN, INFINITY, PEAK, Scan, paired

_ENTRY = 8  # bytes of an entry of the list: the logit, float32, and the token, int32


def find_largest(scan: Scan) -> None:
    """Write the largest logit to PEAK, or NaN if any logit is NaN, and its first token to BEST_TOKEN."""
    code, logits = scan.code, scan.word(LOGITS)
    largest, nan = code.variable(code.number(-INFINITY)), code.variable(code.number(0.0))
    largest_block = code.variable(code.integer(0))

    def block(first: Int, start: Int | None) -> None:
        vectors = [code.load_floats(logits + token * 4) for token in scan.vectors(first)]
        tests = [each.exceeds_or_nan(largest.get()) for each in vectors]
        with code.when(paired(tests, Condition.__or__).any()):
            for each in vectors:
                with code.when(each.is_nan().any()):
                    nan.set(code.number(float("nan")))
            top = paired(vectors, Vector.maximum).largest()
            with code.when(top > largest.get()):
                largest.set(top)
                largest_block.set(first)

    scan.blocks(block)
    token = code.variable(largest_block.get())
    end = largest_block.get() + (BLOCK - 1)

    def is_earlier() -> Condition:
        is_smaller: Condition = code.load_float(logits + token.get() * 4).differs(largest.get()) & (token.get() < end)
        return is_smaller

    with code.repeat_while(is_earlier):
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
        smallest = code.load_float(last)
        tests = [code.load_floats(logits + token * 4) > smallest for token in scan.vectors(first)]
        with code.when(paired(tests, Condition.__or__).any()):
            with code.loop(first if start is None else start, first + BLOCK) as token:
                _insert(scan, logits, token, top, last)

    scan.blocks(block)


def _insert(scan: Scan, logits: Int, token: Int, top: Int, last: Int) -> None:
    """Insert a token into the list if its logit is larger than the list's last one."""
    code = scan.code
    logit = code.load_float(logits + token * 4)
    with code.when(logit > code.load_float(last)):
        place = code.variable(last)

        def goes_before() -> Condition:
            before = (place.get() - _ENTRY).maximum(top)
            result: Condition = (place.get() > top) & (logit > code.load_float(before))
            return result

        with code.repeat_while(goes_before):
            before = place.get() - _ENTRY
            code.store(code.load_int64(before), place.get())
            place.set(before)
        code.store(logit, place.get())
        code.store(token.splat(INT32, 1), place.get() + 4)
