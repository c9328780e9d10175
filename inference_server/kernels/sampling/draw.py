"""Emits the part of the sampling kernel that finds the token with the largest sum of logit and scaled Gumbel noise.

The noise is multiplied by the temperature.

The noise is that of the engine's gumbel.py: a hash of the row's key and the token id. The exact noise needs two logarithms.
An upper bound on the noise needs none. Let f be the hash shifted right by one. Then u > f / 2**31, and the bits of f as
float32 are at most 2**23 * (log2(f) + 127). Only tokens whose bound exceeds the best score are computed exactly.
"""

import math

from inference_server.kernels.emit.code import LANES, Code
from inference_server.kernels.emit.elements import log
from inference_server.kernels.emit.types import INT32
from inference_server.kernels.emit.values import Condition, Float, Int, Vector
from inference_server.kernels.sampling.record import BLOCK, KEY, LOGITS, TEMPERATURE
from inference_server.kernels.sampling.scan import (
    BEST,
    BEST_TOKEN,
    INFINITY,
    LIMIT,
    LIMIT_TOKEN,
    SECOND,
    THRESHOLD,
    Scan,
    paired,
)

_FACTOR = 0x21F0AAAD
_LARGEST_BELOW_ONE = 1.0 - 2.0**-24
# Rounding may reverse the order of scores that are closer than this, relative to the best score and the largest noise.
_TOLERANCE, _LARGEST_NOISE = 2.0**-20, 32.0
# The bound on the noise is _OFFSET - _SLOPE * bits. The offset includes a margin for rounding.
_SLOPE = math.log(2) / 2**23
_OFFSET = math.log(2) * (127 + 31) + 1e-4


def draw(scan: Scan) -> None:
    """Sample among the tokens before LIMIT_TOKEN. Writes BEST_TOKEN, its score BEST, and SECOND.

    SECOND is the second-largest score if it is nearly as large as BEST, otherwise a smaller number. BEST is -infinity
    if there is no token to sample.
    """
    code, logits = scan.code, scan.word(LOGITS)
    temperature, limit = scan.number(TEMPERATURE), scan.float_at(LIMIT).splat(LANES)
    for offset in (BEST, SECOND, THRESHOLD):
        scan.set(offset, code.number(-INFINITY))
    slope, margin = (temperature * -_SLOPE).splat(LANES), temperature * _OFFSET
    key = _key(scan)
    threshold = code.variable(code.number(-INFINITY))

    def block(first: Int, start: Int | None) -> None:
        tests = []
        for token in scan.vectors(first):
            logit = code.load_floats(logits + token * 4)
            bits = (_hashes(scan, token, key) >> 1).to_float().bits_as(INT32).to_float()
            tests.append((bits.multiply_add(slope, logit) > threshold.get()) & (logit >= limit))
        with code.when(paired(tests, Condition.__or__).any()):
            arguments = (
                scan.record,
                scan.state,
                scan.tables,
                scan.vocab_size,
                first,
                first if start is None else start,
            )
            code.call("draw_exactly", _draw_exactly, *arguments)
            threshold.set(scan.float_at(THRESHOLD) - margin)

    scan.blocks(block)


def _key(scan: Scan) -> tuple[Vector, Vector]:
    """Return the halves of the row's key in every lane."""
    key = scan.word(KEY)
    return key.splat(INT32, LANES), (key >> 32).splat(INT32, LANES)


def _hashes(scan: Scan, first: Int, key: tuple[Vector, Vector]) -> Vector:
    """Return 32 random bits for each of 16 tokens."""
    place = scan.tables + first * 4
    halves = [scan.code.load_vector(address, INT32, LANES, 4) for address in (place, place + scan.vocab_size * 4)]
    bits = halves[0] * key[0] + halves[1] * key[1]
    return (bits + bits.shift_right_signed(16)) * _FACTOR


def _draw_exactly(code: Code, record: Int, state: Int, tables: Int, vocab_size: Int, first: Int, start: Int) -> None:
    """Compare the exact scores of a block's tokens, from token `start` on, with the best scores so far."""
    scan = Scan(code, record, state, tables, vocab_size)
    scores = code.stack(4 * LANES)
    logits, temperature, key = scan.word(LOGITS), scan.number(TEMPERATURE), _key(scan)
    limit = scan.limit(scan.float_at(LIMIT), scan.token_at(LIMIT_TOKEN))
    nothing = code.floats(-INFINITY)
    with code.loop(first, first + BLOCK, LANES) as token:
        logit = code.load_floats(logits + token * 4)
        numbers = _hashes(scan, token, key).to_float(is_signed=False)
        score = logit + gumbel(code, numbers * 2.0**-32 + 2.0**-33) * temperature
        is_eligible = scan.lanes_from(token, start) & scan.is_before(logit, token, limit)
        score = is_eligible.select(score, nothing)
        with code.when((score > scan.float_at(THRESHOLD)).any()):
            code.store(score, scores, 64)
            with code.loop(0, LANES) as lane:
                _compare(scan, code.load_float(scores + lane * 4), token + lane)


def gumbel(code: Code, u: Vector) -> Vector:
    """Return -log(-log(1 - u)). `u`: float32 from 2**-33 to 1; 1 is treated as 1 - 2**-24."""
    u = u.minimum(_LARGEST_BELOW_ONE)
    rest = 1.0 - u
    # log(1 - u), computed from the rounded difference and corrected for the rounding (Kahan).
    correct = log(code, rest) * (u / (1.0 - rest))
    logarithm: Vector = rest.equals(1.0).select(0.0 - u, correct)
    return 0.0 - log(code, 0.0 - logarithm)


def _compare(scan: Scan, score: Float, token: Int) -> None:
    code = scan.code
    with code.when(score > scan.float_at(THRESHOLD)):
        best = scan.float_at(BEST)
        with code.either(score > best) as (is_best, is_not):
            with is_best:
                scan.set(SECOND, best)
                scan.set(BEST, score)
                scan.set(BEST_TOKEN, token)
                scan.set(THRESHOLD, score - tolerance(scan, score))
            with is_not:
                scan.set(SECOND, scan.float_at(SECOND).maximum(score))


def tolerance(scan: Scan, score: Float) -> Float:
    """Return the largest difference from the score at which rounding can change the order of two scores."""
    magnitude = score.maximum(0.0 - score)
    return (magnitude + scan.number(TEMPERATURE) * _LARGEST_NOISE) * _TOLERANCE
