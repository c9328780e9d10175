"""Part of the sampling kernel that changes a row's logits: bias, penalties, and tokens that a grammar does not allow.

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
    PRESENCE,
    REPETITION,
    SEEN,
)
from inference_server.kernels.sampling.scan import Scan

_LARGEST_LOGIT = 1e30  # finite after a division by any temperature
_FORBIDDEN = 1e38  # subtracted from the logit of a token that must not be sampled


def add_bias(scan: Scan) -> None:
    """Add the bias to the logits of its tokens, in place."""
    code, logits = scan.code, scan.word(LOGITS)
    tokens, biases = scan.word(BIASED), scan.word(BIASES)
    with code.loop(0, scan.word(NUM_BIASED)) as index:
        place = logits + code.load_int32(tokens + index * 4) * 4
        code.store(code.load_float(place) + code.load_float(biases + index * 4), place, 4)


def penalise(scan: Scan) -> None:
    """Apply the repetition, frequency and presence penalties in place.

    A vector of logits without seen tokens is skipped unless a logit is beyond +-_LARGEST_LOGIT, because divisions are slow.
    """
    code, logits = scan.code, scan.word(LOGITS)
    seen, counts = scan.word(SEEN), scan.word(COUNTS)
    strengths = [scan.number(index) for index in (REPETITION, FREQUENCY, PRESENCE)]

    def block(first: Int, start: Int | None) -> None:
        for token in scan.vectors(first):
            logit = code.load_floats(logits + token * 4)
            is_seen = code.load_vector(seen + token, INT8).widened(INT32) > 0
            is_huge = (logit > _LARGEST_LOGIT) | (logit < -_LARGEST_LOGIT)
            with code.when((is_seen | is_huge).any()):
                repeated: Vector = is_seen.select(_repeated(logit, strengths[0]), logit)
                result = _lowered(repeated, code.load_floats(counts + token * 4), strengths[1], strengths[2])
                _replace(scan, logit, result, logits, token, start)

    scan.blocks(block)


def _repeated(logit: Vector, repetition: Float) -> Vector:
    result: Vector = (logit > 0.0).select(logit / repetition, logit * repetition)
    return result


def _lowered(logit: Vector, count: Vector, frequency: Float, presence: Float) -> Vector:
    lowered = logit - count * frequency
    zeros = count - count
    lowered = lowered - (count > 0.0).select(zeros + presence, zeros)
    lowered = (lowered > _LARGEST_LOGIT).select(zeros + _LARGEST_LOGIT, lowered)
    result: Vector = (lowered < -_LARGEST_LOGIT).select(zeros - _LARGEST_LOGIT, lowered)
    return result


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
    """Store the new logits of the tokens that no other block has changed."""
    if start is not None:
        new = scan.lanes_from(token, start).select(new, old)
    scan.code.store(new, logits + token * 4, 4)
