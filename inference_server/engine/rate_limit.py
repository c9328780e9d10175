"""How many requests an account may send: a token bucket for each, filled evenly over a minute.

The buckets are throttled-py's; the accounts that were heard of longest ago are forgotten first, so memory has a bound.
"""

from throttled import RateLimiterType, Throttled, rate_limiter, store

from inference_server.errors import RateLimited

_MAX_ACCOUNTS = 100_000


class RateLimit:
    def __init__(self, requests_per_minute: int | None) -> None:
        """None: as many as they like. A bucket holds a minute's worth, so that much may come at once."""
        self._limiter = None
        if requests_per_minute is not None:
            self._limiter = Throttled(
                using=RateLimiterType.TOKEN_BUCKET.value,
                quota=rate_limiter.per_min(requests_per_minute, burst=requests_per_minute),
                store=store.MemoryStore(options={"MAX_SIZE": _MAX_ACCOUNTS}),
                timeout=-1,
            )

    def take(self, account: str) -> None:
        """Count one request. Raises RateLimited, and then does not count it."""
        if self._limiter is None:
            return
        # A key may not be empty.
        result = self._limiter.limit(f"account {account}")
        if result.limited:
            raise RateLimited(retry_after_seconds=max(1.0, float(result.state.retry_after)))
