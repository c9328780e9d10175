"""A histogram for hot paths: plain numbers that one thread adds to and every thread may read. Knows no Prometheus."""

from bisect import bisect_left

# Bounds for the tokens computed in one step.
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)


class Tally:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: the largest value of each bucket, ascending; larger ones have a bucket more."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0  # of all values

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times
