"""The bounds of the batch queue. Does not depend on the settings that define them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of a batch queue.

    Attributes:
        max_batches: Largest number of batches that are kept, finished ones included.
        max_requests: Largest number of requests in a batch.
        max_bytes: Largest size of all unfinished requests and all results together, in bytes.
        keep_seconds: Time for which results are kept after the end of their batch, in seconds.
        timeout_seconds: Longest time for a batch, in seconds. Requests that have not ended by then fail.
        parallel: Largest number of requests that run at the same time.
    """

    max_batches: int
    max_requests: int
    max_bytes: int
    keep_seconds: float
    timeout_seconds: float
    parallel: int
