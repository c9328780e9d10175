"""Limits the requests of each account per minute with token buckets of throttled-py.

The number of buckets is limited. Buckets of the accounts that have been inactive longest are removed first.
"""

from throttled import RateLimiterType, Throttled, rate_limiter, store

from inference_server.errors import RateLimited

_MAX_ACCOUNTS = 100_000


class RateLimit:
    """Rate limiter with a token bucket for each account."""

    def __init__(self, requests_per_minute: int | None) -> None:
        """Create the limiter. Buckets start full, so one minute's requests may arrive at once.

        Args:
            requests_per_minute: Requests of one account per minute; None: no limit.
        """
        self._limiter = None
        if requests_per_minute is not None:
            self._limiter = Throttled(
                using=RateLimiterType.TOKEN_BUCKET.value,
                quota=rate_limiter.per_min(requests_per_minute, burst=requests_per_minute),
                store=store.MemoryStore(options={"MAX_SIZE": _MAX_ACCOUNTS}),
                timeout=-1,
            )

    def take(self, account: str) -> None:
        """Take a token from the account's bucket for one request. Raises RateLimited if the bucket is empty."""
        if self._limiter is None:
            return
        # throttled-py does not accept an empty key, and an account may be empty.
        result = self._limiter.limit(f"account {account}")
        if result.limited:
            raise RateLimited(retry_after_seconds=max(1.0, float(result.state.retry_after)))
