"""Emits the online softmax of prefill attention, for 16 queries at a time, one in each lane of a vector.

Scores are (keys, 32 queries) float32; weights are pairs of keys in bfloat16, in the layout that Bf16Unit reads.
"""

from inference_server.kernels.attention.transposition import TILE_BYTES
from inference_server.kernels.emit.code import LANES, Code
from inference_server.kernels.emit.types import FLOAT, INT32
from inference_server.kernels.emit.values import Float, Int, Vector

ROW_BYTES = 128  # bytes of a row of scores or outputs: 32 queries
LOWEST = -1e30  # below every score, and finite: the difference of two infinities would be NaN
# A query's reference is the number that is subtracted from its scores before exp. The reference is raised to the
# largest score only if that score exceeds it by more than _MAX_RISE. Weights are then at most e**8, well within
# float32's range, and nearly all updates skip rescaling (a technique of FlashAttention-4).
_MAX_RISE = 8.0
_PAIRS_AT_ONCE = 4  # pairs of keys in an iteration of the loop
_SUM = 128  # bytes from a query's reference to its sum of weights


def reset(code: Code, state: Int) -> None:
    """Initialise the references and sums of 16 queries, before their first keys. `state`: as in `update`."""
    code.store(code.floats(LOWEST), state)
    code.store(code.floats(0.0), state + _SUM)


def set_sink(code: Code, state: Int, sink: Int) -> None:
    """Initialise 16 queries as if one key with a score but no value had been processed.

    `sink`: address of the score.
    """
    code.store(code.load_splat(sink, FLOAT, LANES), state)
    code.store(code.floats(1.0), state + _SUM)


def sums_of_weights(code: Code, state: Int) -> Vector:
    """Load the sums of weights of 16 queries."""
    return code.load_floats(state + _SUM)


def _exp(code: Code, x: Vector) -> Vector:
    """Return e**x for x <= 80, with a relative error of 4e-6, far below that of bfloat16; 0 below -87; NaN for NaN.

    e**0 is exactly 1. The method is that of elements.exp. The polynomial is fitted at 4,000 Chebyshev nodes between
    -ln 2 / 2 and ln 2 / 2.
    """
    magic = code.floats(12582912.0)
    shifted = x.multiply_add(1.44269504088896341, magic)
    r = (shifted - magic).multiply_add(-0.69314718055994531, x)
    p = code.floats(0.04191753)
    for coefficient in (0.16792161, 0.49998869, 0.99996228, 1.0):
        p = p.multiply_add(r, code.floats(coefficient))
    power = (p.bits_as(INT32) + (shifted.bits_as(INT32) << 23)).bits_as(FLOAT)
    result: Vector = (x < -87.0).select(0.0, power)
    return result


def _mask_later_keys(code: Code, scores: Int, first_key: Int, num_keys: Int, position: Int) -> None:
    """Replace the scores of keys that come after the query with LOWEST, for 16 queries from `position` on."""
    lanes = code.floats([float(lane) for lane in range(LANES)])
    positions = lanes + position.to_float()  # exact up to 2**24
    with code.loop(0, num_keys) as key:
        place = scores + key * ROW_BYTES
        place_of_key = (first_key + key).to_float().splat(LANES)
        seen: Vector = (positions >= place_of_key).select(code.load_floats(place), LOWEST)
        code.store(seen, place, 64)


def _highest(code: Code, scores: Int, num_keys: Int) -> Vector:
    """Return the largest score of each query."""
    most = [code.variable(code.floats(LOWEST)) for _ in range(2)]
    with code.loop(0, num_keys, 8) as key:
        for index in range(8):
            score = code.load_floats(scores + key * ROW_BYTES + ROW_BYTES * index)
            most[index % 2].set(score.maximum(most[index % 2].get()))
    result: Vector = most[0].get().maximum(most[1].get())
    return result


def _rescale(code: Code, before: Vector, largest: Vector, state: Int, outputs: Int, width: Int) -> None:
    """Make the sums of weights and the outputs relative to the reference `largest` instead of `before`."""
    factor = _exp(code, before - largest)
    code.store(largest, state)
    code.store(code.load_floats(state + _SUM) * factor, state + _SUM)
    with code.loop(0, width * ROW_BYTES, ROW_BYTES) as offset:
        code.store(code.load_floats(outputs + offset) * factor, outputs + offset, 64)


def _pair_of_weights(first: Vector, second: Vector) -> Vector:
    """Return two vectors as bfloat16, interleaved lane by lane. Rounds to nearest, ties away from 0."""
    low, high = (value.bits_as(INT32) + 0x8000 for value in (first, second))
    return (low >> 16) | (high & -65536)


def update(
    code: Code,
    scores: Int,
    weights: Int,
    first_key: Int,
    num_keys: Int,
    scaling: Float,
    position: Int,
    state: Int,
    outputs: Int,
    width: Int,
) -> None:
    """Compute the weights of 16 queries for `num_keys` keys from `first_key` on, and add them to the sums of weights.

    If a reference rises, rescales the sums and outputs so far.

    Args:
        code: The function to append to.
        scores: Address of the scores; those of keys after a query are overwritten.
        weights: Address of the result: two tiles for every 32 keys.
        first_key: Position of the first key.
        num_keys: Number of keys, a multiple of 32.
        scaling: The factor on the scores.
        position: Position of the first query.
        state: Address of each query's reference, float32. The sums of weights are 128 bytes after the references.
        outputs: Address of the weighted values so far, (width, 32 queries) float32.
        width: Values of a head.
    """
    with code.when(first_key + num_keys > position + 1):  # otherwise no key comes after a query
        _mask_later_keys(code, scores, first_key, num_keys, position)
    factor = scaling.splat(LANES)
    before, highest = code.load_floats(state), _highest(code, scores, num_keys) * factor
    largest: Vector = (highest > before + _MAX_RISE).select(highest, before)
    with code.when((largest - before).largest() > 0.0):
        _rescale(code, before, largest, state, outputs, width)
    sums = [code.variable(code.floats(0.0)) for _ in range(2)]
    with code.loop(0, num_keys >> 1, _PAIRS_AT_ONCE) as first_pair:
        pairs, target = scores + first_pair * (2 * ROW_BYTES), weights + (first_pair >> 4) * (2 * TILE_BYTES)
        for pair in range(_PAIRS_AT_ONCE):
            values = []
            for index in range(2):
                score = code.load_floats(pairs + ROW_BYTES * (2 * pair + index))
                values.append(_exp(code, score * factor - largest))
                sums[index].set(sums[index].get() + values[index])
            code.store(_pair_of_weights(*values), target + ((first_pair & 15) * 64 + 64 * pair), 64)
    total = code.load_floats(state + _SUM) + (sums[0].get() + sums[1].get())
    code.store(total, state + _SUM)
