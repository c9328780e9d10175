"""Times each product of a forward pass separately. The shortest time over all passes counts."""

import time
from collections.abc import Callable, Sequence

Call = Callable[[], object]
Clock = Callable[[], float]


def shortest_seconds(calls: Sequence[Call], clock: Clock, *, seconds: float, passes: int) -> list[float]:
    """Return the shortest duration of each call.

    The calls run in order, again and again, so that between two runs of one call all other weights are read.

    Args:
        calls: The products of a pass.
        clock: time.thread_time for one thread, time.perf_counter for several.
        seconds: The least total duration of the measured passes, in seconds.
        passes: The least number of measured passes. One pass runs before them and is not measured.
    """
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    end, done = time.monotonic() + seconds, 0
    while done < passes or time.monotonic() < end:
        for number, call in enumerate(calls):
            before = clock()
            call()
            best[number] = min(best[number], clock() - before)
        done += 1
    return best
