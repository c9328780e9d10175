"""Emits the parts of the sampling kernel for top_k, min_p and top_p.

top_k becomes a limit: the first token, in the order of `Scan.is_before`, that is excluded. The kernel finds its logit by
bisection, between the smallest and the largest possible one. min_p is a limit too: the smallest logit that is kept.

top_p needs no sorting. A token sampled from all is kept if the tokens before it have less than top_p of the mass. Otherwise
it becomes the limit, and the kernel samples again among the tokens before it. The result is the same token as if only
the kept tokens had been sampled from, because the noise stays the same.
"""

from inference_server.kernels.emit.code import LANES
from inference_server.kernels.emit.elements import exp
from inference_server.kernels.emit.types import DOUBLE, FLOAT
from inference_server.kernels.emit.values import Condition, Float, Int, Vector
from inference_server.kernels.sampling.draw import draw
from inference_server.kernels.sampling.record import DEPTH, LOGITS, TEMPERATURE, TOP_K, TOP_P, UNDECIDED
from inference_server.kernels.sampling.scan import (
    BEST,
    BEST_TOKEN,
    FACTOR,
    INFINITY,
    LIMIT,
    LIMIT_TOKEN,
    MASS,
    MASS_BEFORE,
    PEAK,
    Scan,
    from_ordinal,
    ordinal,
    paired,
)

# Relative errors of the mass: by adding the weights, and by torch's rounding, for each unit of logit / temperature.
_MASS_ERROR, _LOGIT_ERROR = 1e-5, 2.0**-22


def apply_top_p(scan: Scan) -> None:
    """Sample again until the tokens before BEST_TOKEN have less than top_p of the mass.

    The mass is the sum of the weights of all tokens that top_k and min_p keep. BEST_TOKEN becomes UNDECIDED if rounding could
    decide whether the token is kept.
    """
    code, factor = scan.code, 1.0 / scan.number(TEMPERATURE)
    scan.set(FACTOR, factor)
    scan.call("weigh", weigh)
    total, peak = scan.float_at(MASS), scan.float_at(PEAK)
    wanted = total * scan.number(TOP_P)
    margin = total * (peak.maximum(0.0 - peak) * factor * _LOGIT_ERROR + _MASS_ERROR)
    with code.repeat_while(lambda: (scan.float_at(MASS_BEFORE) > wanted + margin) & (scan.float_at(BEST) > -INFINITY)):
        token = scan.token_at(BEST_TOKEN)
        scan.set(LIMIT, code.load_float(scan.word(LOGITS) + token * 4))
        scan.set(LIMIT_TOKEN, token)
        scan.call("draw", draw)
        scan.call("weigh", weigh)
    before = scan.float_at(MASS_BEFORE)
    with code.when((before > wanted - margin) & (before > 0.0)):
        scan.set(BEST_TOKEN, code.integer(UNDECIDED))


def weigh(scan: Scan) -> None:
    """Write MASS and MASS_BEFORE. Groups of 4 weights are added in float32, and the groups' sums in float64."""
    code, logits = scan.code, scan.word(LOGITS)
    peak, factor = scan.float_at(PEAK).splat(LANES), scan.float_at(FACTOR).splat(LANES)
    best_token = scan.token_at(BEST_TOKEN)
    limits = [
        scan.limit(scan.float_at(LIMIT), scan.token_at(LIMIT_TOKEN)),
        scan.limit(code.load_float(logits + best_token * 4), best_token),
    ]
    zeros = code.floats(0.0)
    sums = [code.variable(zeros.widened(DOUBLE)) for _ in range(2)]

    def block(first: Int, start: Int | None) -> None:
        weights: list[list[Vector]] = [[] for _ in limits]
        for token in scan.vectors(first):
            logit = code.load_floats(logits + token * 4)
            weight = exp(code, (logit - peak) * factor)
            if start is not None:
                weight = scan.lanes_from(token, start).select(weight, zeros)
            for each, limit in zip(weights, limits, strict=True):
                each.append(scan.is_before(logit, token, limit).select(weight, zeros))
        for total, each in zip(sums, weights, strict=True):
            total.set(total.get() + paired(each, Vector.__add__).widened(DOUBLE))

    scan.blocks(block)
    for offset, total in zip((MASS, MASS_BEFORE), sums, strict=True):
        scan.set(offset, total.get().narrowed(FLOAT).sum())


def limit_min_p(scan: Scan) -> None:
    """Set the limit after the last token that min_p keeps, unless the current limit is stricter."""
    least = scan.float_at(PEAK) + scan.number(DEPTH)
    with scan.code.when(least > scan.float_at(LIMIT)):
        scan.set(LIMIT, least)
        scan.set(LIMIT_TOKEN, scan.vocab_size)


def limit_top_k(scan: Scan) -> None:
    """Set the limit after the first TOP_K tokens, 1 to vocab_size - 1. PEAK must be the largest logit."""
    code, wanted = scan.code, scan.word(TOP_K).to_float()
    # The logit of the last kept token lies between `low` and `high`. From the second step on, both are logits of the row.
    low, high = code.variable(code.number(-INFINITY)), code.variable(scan.float_at(PEAK))
    num_larger = code.variable(code.number(0.0))  # tokens with logits above `high`
    is_exact, num_steps = code.variable(code.integer(0)), code.variable(code.integer(0))

    def is_open() -> Condition:
        result: Condition = (low.get() < high.get()) & is_exact.get().equals(0)
        return result

    with code.repeat_while(is_open):
        count, least, most = _split(scan, _middle(low.get(), high.get(), num_steps.get()))
        num_steps.set(num_steps.get() + 1)
        with code.either(count < wanted) as (too_few, enough):
            with too_few:
                high.set(most)
                num_larger.set(count)
            with enough:
                low.set(least)
                is_exact.set((count > wanted).select(code.integer(0), code.integer(1)))
    scan.set(LIMIT, low.get())
    scan.set(LIMIT_TOKEN, scan.vocab_size)
    with code.when(is_exact.get().equals(0)):
        _limit_equal(scan, low.get(), wanted - num_larger.get())


def _middle(low: Float, high: Float, num_steps: Int) -> Float:
    """Return a number above `low` and at most `high`: their mean, or the median of all float32 numbers between them.

    The mean usually needs fewer steps. Every fourth step uses the median, which needs few steps if the logits differ by
    orders of magnitude, as those of forbidden tokens do.
    """
    bottom, top = ordinal(low), ordinal(high)
    mean = low * 0.5 + high * 0.5
    is_between = (low < mean) & (mean < high) & ((num_steps % 4) > 0)
    result: Float = is_between.select(mean, from_ordinal(bottom + ((top - bottom + 1) >> 1)))
    return result


def _split(scan: Scan, middle: Float) -> tuple[Float, Float, Float]:
    """Return the number of logits >= middle, the smallest of them, and the largest logit below `middle`."""
    code, logits, middles = scan.code, scan.word(LOGITS), middle.splat(LANES)
    zeros, highest, lowest = code.floats(0.0), code.floats(INFINITY), code.floats(-INFINITY)
    counts, least, most = (code.variable(start) for start in (zeros, highest, lowest))

    def block(first: Int, start: Int | None) -> None:
        above, below, ones = [], [], []
        for token in scan.vectors(first):
            logit = code.load_floats(logits + token * 4)
            is_above = logit >= middles
            one = code.floats(1.0) if start is None else scan.lanes_from(token, start).select(code.floats(1.0), zeros)
            ones.append(is_above.select(one, zeros))
            above.append(is_above.select(logit, highest))
            below.append(is_above.select(lowest, logit))
        counts.set(counts.get() + paired(ones, Vector.__add__))
        least.set(least.get().minimum(paired(above, Vector.minimum)))
        most.set(most.get().maximum(paired(below, Vector.maximum)))

    scan.blocks(block)
    return counts.get().sum(), least.get().smallest(), most.get().largest()


def _limit_equal(scan: Scan, value: Float, num_kept: Float) -> None:
    """Set LIMIT_TOKEN after the first `num_kept` tokens whose logit equals `value`."""
    code, logits = scan.code, scan.word(LOGITS)
    token, left = code.variable(code.integer(0)), code.variable(num_kept)
    with code.repeat_while(lambda: (left.get() > 0.0) & (token.get() < scan.vocab_size)):
        is_other = code.load_float(logits + token.get() * 4).differs(value)
        left.set(left.get() - is_other.select(code.number(0.0), code.number(1.0)))
        token.set(token.get() + 1)
    scan.set(LIMIT_TOKEN, token.get())
