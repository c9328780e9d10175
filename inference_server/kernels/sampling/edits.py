"""Emits the part of the sampling kernel that changes logits: bias, penalties, and tokens that a grammar does not allow.

Computes the same bits as the engine's torch version, with the same operations in the same order.
"""

from inference_server.kernels.emit.types import INT8, INT32
from inference_server.kernels.emit.values import Float, Int, Vector
from inference_server.kernels.sampling.record import (
    ALLOWED,
    BIASED,
    BIASES,
    COUNTS,
    FREQUENCY,
    LOGITS,
    NUM_BIASED,
    NUM_PENALISED,
    PENALISED,
    PRESENCE,
    REPETITION,
    UNCHANGED,
)
from inference_server.kernels.sampling.scan import INFINITY, Scan

_LARGEST_LOGIT = 1e30  # logits up to this limit stay finite after a division by any temperature
_FORBIDDEN = 1e38  # subtracted from the logit of a token that must not be sampled


def add_bias(scan: Scan) -> None:
    """Add the bias to the logits of its tokens, in place."""
    code, logits = scan.code, scan.word(LOGITS)
    tokens, biases = scan.word(BIASED), scan.word(BIASES)
    with code.loop(0, scan.word(NUM_BIASED)) as index:
        place = logits + code.load_int32(tokens + index * 4) * 4
        code.store(code.load_float(place) + code.load_float(biases + index * 4), place, 4)


def penalise(scan: Scan) -> None:
    """Apply the repetition, frequency and presence penalties to the logits of the row's tokens, in place.

    The original logits are stored at UNCHANGED. NaN and infinities do not change, so that `find_largest` still detects
    them.
    """
    code, logits = scan.code, scan.word(LOGITS)
    tokens, counts, unchanged = scan.word(PENALISED), scan.word(COUNTS), scan.word(UNCHANGED)
    repetition, frequency, presence = (scan.number(index) for index in (REPETITION, FREQUENCY, PRESENCE))
    with code.loop(0, scan.word(NUM_PENALISED)) as index:
        place = logits + code.load_int32(tokens + index * 4) * 4
        logit, count = code.load_float(place), code.load_float(counts + index * 4)
        code.store(logit, unchanged + index * 4, 4)
        repeated: Float = (logit > 0.0).select(logit / repetition, logit * repetition)
        lowered = repeated - count * frequency
        lowered = lowered - (count > 0.0).select(presence, code.number(0.0))
        lowered = (lowered > _LARGEST_LOGIT).select(code.number(_LARGEST_LOGIT), lowered)
        lowered = (lowered < -_LARGEST_LOGIT).select(code.number(-_LARGEST_LOGIT), lowered)
        is_finite = (logit < INFINITY) & (logit > -INFINITY)
        code.store(is_finite.select(lowered, logit), place, 4)


def forbid(scan: Scan) -> None:
    """Lower the logits of tokens that the grammar does not allow far below all others, in place."""
    code, logits, allowed = scan.code, scan.word(LOGITS), scan.word(ALLOWED)

    def block(first: Int, start: Int | None) -> None:
        for token in scan.vectors(first):
            logit = code.load_floats(logits + token * 4)
            is_allowed = code.load_vector(allowed + token, INT8).widened(INT32) > 0
            _replace(scan, logit, is_allowed.select(logit, logit - _FORBIDDEN), logits, token, start)

    scan.blocks(block)


def _replace(scan: Scan, old: Vector, new: Vector, logits: Int, token: Int, start: Int | None) -> None:
    """Store the new logits of 16 tokens. With `start`, leaves the tokens before it, which another block has changed."""
    if start is not None:
        new = scan.lanes_from(token, start).select(new, old)
    scan.code.store(new, logits + token * 4, 4)
