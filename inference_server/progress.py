"""Progress lines in the log for phases that take seconds or minutes."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def progress(phase: str, *, every_seconds: float = 2.0, is_brief: bool = False) -> Iterator[None]:
    """Log the beginning of a phase, then its elapsed time at intervals, then its duration.

    A phase that raises an exception has no last line.

    Args:
        phase: Description of the phase, for example "loading tiny as float32".
        every_seconds: Interval between two lines, in seconds.
        is_brief: True if the phase usually ends before the first interval does. A phase that does so logs nothing.
    """
    started = time.monotonic()
    finished = threading.Event()
    is_logged = not is_brief

    def log_elapsed() -> None:
        nonlocal is_logged
        while not finished.wait(every_seconds):
            is_logged = True
            logger.info("… %s: %.0f s so far", phase, time.monotonic() - started)

    if is_logged:
        logger.info("%s", phase)
    ticker = threading.Thread(target=log_elapsed, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()
    if is_logged:
        logger.info("%s: done in %.1f s", phase, time.monotonic() - started)
