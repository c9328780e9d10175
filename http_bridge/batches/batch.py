"""A batch: requests that run in the background, and their outcomes. Does not depend on HTTP or gRPC."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from http_bridge.errors import ApiError
from http_bridge.observability.metrics import BatchStatus


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one request.

    Attributes:
        body: The result as JSON.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Generated tokens.
    """

    body: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Work(Protocol):
    """A valid request of a batch."""

    @property
    def size(self) -> int:
        """The size of the request in bytes."""

    async def run(self, request_id: str, timeout_seconds: float) -> Result:
        """Run the request and return its result.

        Args:
            request_id: Id of the request in the logs.
            timeout_seconds: Longest time, in seconds.

        Raises:
            ApiError: The request failed or was refused.
        """


@dataclass(slots=True)
class Request:
    """A request of a batch.

    Attributes:
        reference: The client's own id of the request as JSON; null if it has none.
        work: The request itself; None if it has an outcome or is invalid.
        outcome: Its result, or the error of a failed or invalid request; None while it waits or runs.
    """

    reference: bytes
    work: Work | None
    outcome: Result | ApiError | None = None

    @property
    def size(self) -> int:
        """The size in bytes of the reference together with the request, or with the error of an invalid request."""
        text = len(self.outcome.description) if isinstance(self.outcome, ApiError) else 0
        return len(self.reference) + text + (0 if self.work is None else self.work.size)


@dataclass(slots=True, kw_only=True)
class Batch:
    """A batch and its progress.

    Attributes:
        id: UUID of the batch.
        account: Account that submitted it; empty if the request had none.
        model: Name of the model.
        requests: The requests in the client's order.
        deadline: Time at which it must end, in seconds of the event loop's clock.
        began_at: Time of its submission, in seconds of the event loop's clock.
        waiting: Indexes of the requests that have not started, in order.
        num_open: Number of requests without an outcome.
        size: Size in bytes of its unfinished requests, all references, its results and the errors of invalid requests.
        is_started: Whether a request has started.
        pause_seconds: The last pause after a refusal, in seconds; 0 after a success. The next pause is longer.
        was_read: Whether a client received the results.
    """

    id: str
    account: str
    model: str
    requests: Sequence[Request]
    deadline: float
    began_at: float
    waiting: deque[int] = field(default_factory=deque)
    num_open: int = 0
    size: int = 0
    is_started: bool = False
    pause_seconds: float = 0.0
    was_read: bool = False

    def __post_init__(self) -> None:
        """Queue the requests that have no outcome yet."""
        self.waiting.extend(index for index, request in enumerate(self.requests) if request.outcome is None)
        self.num_open = len(self.waiting)
        self.size = sum(request.size for request in self.requests)

    @property
    def status(self) -> BatchStatus:
        """The progress: "queued" before the first request starts, then "running", then "finished"."""
        if not self.num_open:
            return "finished"
        return "running" if self.is_started else "queued"

    @property
    def num_failed(self) -> int:
        """Number of requests that ended with an error."""
        return sum(isinstance(request.outcome, ApiError) for request in self.requests)

    def end(self, index: int, outcome: Result | ApiError) -> int:
        """Set the outcome of a request and drop the request itself. Returns the change of `size`, in bytes."""
        request = self.requests[index]
        change = len(outcome.body) if isinstance(outcome, Result) else 0
        if request.work is not None:
            change -= request.work.size
        request.outcome, request.work = outcome, None
        self.num_open -= 1
        self.size += change
        return change
