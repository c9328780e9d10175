"""Counts the bytes of a download or of a check, and reports them in human-readable lines."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inference_server.weights.disk.space import sized

logger = logging.getLogger(__name__)

Show = Callable[[str], None]

_EVERY_SECONDS = 2.0
# After this time, the interval between two lines has the same length, so that a long download does not fill the log.
_LATER_SECONDS = 10.0
_RATE_SECONDS = 10.0  # the rate is the mean over this time; after this time without data, a line has no rate


class Transfer:
    """The bytes of one activity. Several threads may count at the same time."""

    def __init__(self, activity: str, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin at 0 bytes.

        Args:
            activity: Description, for example "getting owner/name".
            total: Bytes at the end.
            clock: Returns the time in seconds.
        """
        self.activity = activity
        self.total = total
        self._done = 0
        self._clock = clock
        self._last = clock()
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count received bytes. A negative number subtracts bytes that must be sent again."""
        with self._lock:
            self._done += num_bytes
            self._last = self._clock()

    def skip(self, num_bytes: int) -> None:
        """Count bytes that were already on disk. They do not change the rate."""
        with self._lock:
            self._done += num_bytes
            self._samples = deque((when, done + num_bytes) for when, done in self._samples)

    def line(self) -> str:
        """Return the activity with its bytes, the rate of the last seconds and the remaining time."""
        with self._lock:
            now, done, idle = self._clock(), self._done, self._clock() - self._last
            self._samples.append((now, done))
            while len(self._samples) > 2 and self._samples[1][0] <= now - _RATE_SECONDS:
                self._samples.popleft()
            then, before = self._samples[0]
        share = 100 * done / self.total if self.total else 100
        text = f"{self.activity}: {sized(done)} of {sized(self.total)} ({share:.0f}%)"
        rate = (done - before) / (now - then) if now > then else 0.0
        if idle >= _RATE_SECONDS:
            return f"{text}, no data for {duration(idle)}"
        if rate <= 0:
            return text
        return f"{text}, {sized(rate)}/s, {duration((self.total - done) / rate)} left"


def duration(seconds: float) -> str:
    """Return a time in two units at most: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def reported(transfer: Transfer, show: Show | None = None) -> Iterator[None]:
    """Report a transfer during the `with` block, and log its duration afterwards.

    Args:
        transfer: The transfer.
        show: Called twice a second with a line, which replaces the previous line. None: lines are logged every 2 s in
            the first 10 s, then every 10 s.
    """
    started = time.monotonic()
    finished = threading.Event()

    def report() -> None:
        while not finished.wait(_interval(time.monotonic() - started, show)):
            if show:
                show(transfer.line())
            else:
                logger.info("… %s", transfer.line())

    ticker = threading.Thread(target=report, name="transfer", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()
    seconds = time.monotonic() - started
    logger.info("%s: %s in %s", transfer.activity, sized(transfer.total), duration(seconds))


def _interval(elapsed: float, show: Show | None) -> float:
    if show:
        return 0.5
    return _EVERY_SECONDS if elapsed < _LATER_SECONDS else _LATER_SECONDS
