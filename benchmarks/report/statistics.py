"""Computes figures from records, and medians with spreads from rounds. Does no I/O and does not depend on the peers.

Units are in the names: _s seconds, _ms milliseconds, _mib mebibytes.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.load.load import Record

Figures = dict[str, float]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated linearly between the nearest ranks. Raises ValueError for empty `values`."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def summary(records: Sequence[Record]) -> Figures:
    """Return tokens/s over the whole load (from the first start to the last event), TTFT and ITL."""
    tokens = sum(record.completion_tokens for record in records)
    seconds = max(record.events[-1] for record in records) - min(record.start for record in records)
    ttfts = [record.ttft_s * 1e3 for record in records]
    gaps = [gap * 1e3 for record in records for gap in record.gaps_s]
    figures = {
        "tokens": float(tokens),
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "ttft_p50_ms": percentile(ttfts, 50),
        "ttft_max_ms": max(ttfts),
    }
    if gaps:
        figures |= {"itl_p50_ms": percentile(gaps, 50), "itl_p99_ms": percentile(gaps, 99), "itl_max_ms": max(gaps)}
    return figures


def burst(bursts: Sequence[Sequence[Record]]) -> Figures:
    """Return figures of the TTFT of prompts that arrived together, as medians over the bursts.

    `ttft_p50_ms` and `ttft_max_ms` are the median and the largest TTFT of a burst. `ttft_1_ms` is the TTFT of the reply
    that began first, `ttft_2_ms` of the second, and so on.

    Args:
        bursts: The records of each burst. All bursts have the same number of records.
    """
    ordered = [sorted(record.ttft_s * 1e3 for record in records) for records in bursts]
    figures = {
        "ttft_p50_ms": median(percentile(ttfts, 50) for ttfts in ordered),
        "ttft_max_ms": median(ttfts[-1] for ttfts in ordered),
    }
    if len(ordered[0]) > 1:
        each = zip(*ordered, strict=True)
        figures |= {f"ttft_{place}_ms": median(ttfts) for place, ttfts in enumerate(each, start=1)}
    return figures


def step_ms(records: Sequence[Record]) -> float:
    """Return the median time per token after the first, over the replies. Each reply must have at least two tokens."""
    return median((record.events[-1] - record.events[0]) / (record.completion_tokens - 1) * 1e3 for record in records)


def arrival(streams: Sequence[Record], late: Record) -> Figures:
    """Return inter-token latencies of running streams: before a long prompt arrives, until its first token, and in all.

    `late_ttft_ms` is the TTFT of the long prompt.
    """
    before, during = [], []
    for record in streams:
        for start, end in zip(record.events, record.events[1:], strict=False):
            if end < late.start:
                before.append((end - start) * 1e3)
            elif start < late.events[0]:
                during.append((end - start) * 1e3)
    everything = [gap * 1e3 for record in streams for gap in record.gaps_s]
    return {
        "late_ttft_ms": late.ttft_s * 1e3,
        "itl_before_p50_ms": percentile(before, 50),
        "itl_during_p50_ms": percentile(during, 50),
        "itl_during_p99_ms": percentile(during, 99),
        "itl_p50_ms": percentile(everything, 50),
        "itl_p99_ms": percentile(everything, 99),
        "itl_max_ms": max(everything),
    }


def over_rounds(rounds: Sequence[Figures]) -> dict[str, dict[str, Any]]:
    """Return the median, the smallest, the largest and all values of each figure over the rounds."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: _spread([figures[name] for figures in rounds if name in figures]) for name in names}


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": median(values), "min": min(values), "max": max(values), "values": values}
