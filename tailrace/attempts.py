"""Decides whether a failed request is tried again, and after which pause. Contains no I/O, so both clients share it."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tailrace.errors import DeadlineError, TailraceError
from tailrace.options import Limits

# Pauses if the server sent none: half a second, doubled with each attempt up to the longest pause.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 8.0
# A pause that the server sent is extended by up to a quarter, and the client's own one is shortened. Clients that were
# refused together therefore do not retry together.
_JITTER = 0.25
# If the server sent a longer pause than this, the client raises the error at once. `retry_after` contains the pause.
_LONGEST_RETRY_AFTER_SECONDS = 60.0
# gRPC would treat longer deadlines as expired.
_LONGEST_LIMIT_SECONDS = 365 * 86400
logger = logging.getLogger("tailrace")


@dataclass(frozen=True, slots=True)
class Policy:
    """Deadlines in seconds (None: unlimited) and the number of further attempts."""

    timeout: float | None = 600.0
    total_timeout: float | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that is not positive or longer than a year, or for a negative number of retries."""
        for name in ("timeout", "total_timeout"):
            value: float | None = getattr(self, name)
            if value is not None and not 0 < value <= _LONGEST_LIMIT_SECONDS:
                raise ValueError(f"{name} is {value}: it must be above 0 and at most a year, or None for no limit")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}: it must be 0 or more")

    def with_limits(self, limits: Limits) -> "Policy":
        """Return the policy of one call, which may set some of the limits."""
        return Policy(
            limits.get("timeout", self.timeout),
            limits.get("total_timeout", self.total_timeout),
            limits.get("retries", self.retries),
        )


class Attempts:
    """The attempts of one call."""

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._end = None if policy.total_timeout is None else clock() + policy.total_timeout
        self._failed = 0

    def timeout(self) -> float | None:
        """Return the seconds for the next attempt; None: unlimited.

        Raises:
            DeadlineError: `total_timeout` has passed.
        """
        if self._end is None:
            return self._policy.timeout
        remaining = self._end - self._clock()
        if remaining <= 0:
            raise DeadlineError(f"The call did not succeed within total_timeout, {self._policy.total_timeout} s.")
        return remaining if self._policy.timeout is None else min(remaining, self._policy.timeout)

    def pause_after(self, error: TailraceError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            TailraceError: `error`, if it is not retryable, no attempt is left, the server sent too long a pause, or the
                pause would end after the total deadline.
        """
        pause = _pause(error.retry_after, self._failed)
        self._failed += 1
        is_too_late = self._end is not None and self._clock() + pause >= self._end
        is_too_long = error.retry_after is not None and error.retry_after > _LONGEST_RETRY_AFTER_SECONDS
        if not error.is_retryable or self._failed > self._policy.retries or is_too_late or is_too_long:
            raise error
        logger.info(
            "trying again in %.1f s, attempt %d of %d: %s", pause, self._failed + 1, self._policy.retries + 1, error
        )
        return pause


def _pause(retry_after: float | None, failed: int) -> float:
    spread = random.random() * _JITTER  # noqa: S311 - security does not depend on it
    if retry_after is not None:
        return retry_after * (1 + spread)
    return float(min(_FIRST_PAUSE_SECONDS * 2**failed, _LONGEST_PAUSE_SECONDS) * (1 - spread))
