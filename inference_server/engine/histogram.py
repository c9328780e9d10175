"""Histogram for hot paths: plain numbers that one thread changes and every thread may read. Does not depend on Prometheus."""

from bisect import bisect_left

# Bucket bounds for the tokens computed in one step.
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)


class Histogram:
    """Counts of values by bucket, and their sum.

    Attributes:
        bounds: Largest value of each bucket, ascending.
        counts: Values in each bucket (not cumulative). The last one counts values above all bounds.
        total: Sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Create a histogram with empty buckets. `bounds` must be in ascending order."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times
