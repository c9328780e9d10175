"""Records one call of Embed from its arrival to its end, for metrics and log. Times are seconds of time.monotonic()."""

import logging
import time

from inference_server.errors import TailraceError
from inference_server.observability.metrics import CANCELLED, COMPLETED, FAILED, UNKNOWN_MODEL, Metrics
from tailrace.v1 import inference_pb2 as pb

logger = logging.getLogger(__name__)


class EmbedRecord:
    """The record of one call of Embed. `finish` updates the metrics and writes the log line.

    A request that is marked as neither succeeded nor failed before `finish` counts as cancelled.

    Attributes:
        request_id: Id of the request.
        outcome: "completed", "cancelled", or the reason of the error.
    """

    def __init__(
        self, metrics: Metrics, request: pb.EmbedRequest, request_id: str, *, is_known: bool, deadline: float | None
    ) -> None:
        """Create the record of a call that has just arrived.

        Args:
            metrics: The server's metrics.
            request: The request, which need not be valid.
            request_id: Its id.
            is_known: True if the server serves the requested model.
            deadline: Seconds from now until the client's deadline; None: no deadline.
        """
        self._metrics = metrics
        self._request = request
        self.request_id = request_id
        self._model = request.model if is_known else UNKNOWN_MODEL
        self._deadline = deadline
        self._arrived = time.monotonic()
        self.outcome = CANCELLED
        self._status: str | None = None
        self._accepted: float | None = None
        self._started: float | None = None
        self._prompt_tokens = 0

    def accept(self, prompt_tokens: int) -> None:
        """Count the request as accepted. `prompt_tokens`: tokens of all texts."""
        self._accepted = time.monotonic()
        self._prompt_tokens = prompt_tokens
        self._metrics.accepted.labels(self._model).inc()

    def start(self, started: float | None) -> None:
        """Record the time at which the first batch with a text of the request began; None if none did."""
        self._started = started

    def mark_succeeded(self) -> None:
        """Record that all vectors were computed."""
        self.outcome, self._status = COMPLETED, "OK"

    def mark_failed(self, error: TailraceError) -> None:
        """Record the error that the client gets."""
        self.outcome, self._status = error.reason, error.grpc_code

    def finish(self) -> None:
        """Update the metrics and write the log line."""
        now = time.monotonic()
        seconds = now - self._arrived
        queue = None
        if self._accepted is None:
            self._metrics.refused.labels(self._model, self.outcome).inc()
        else:
            queue = max(0.0, (self._started or now) - self._accepted)
            self._count_end(queue, seconds)
        logger.info(
            "embed %(request_id)s %(model)s: %(outcome)s after %(total_seconds).2f s",
            {
                "request_id": self.request_id,
                "model": self._request.model,
                "outcome": self.outcome,
                "total_seconds": round(seconds, 6),
                "status": self._status or self._cancelled_status(seconds),
                "account": self._request.account or None,
                "texts": len(self._request.texts),
                "prompt_tokens": self._prompt_tokens or None,
                "queue_seconds": None if queue is None else round(queue, 6),
            },
        )

    def _count_end(self, queue: float, seconds: float) -> None:
        metrics, model = self._metrics, self._model
        metrics.ended.labels(model, self.outcome if self.outcome in (COMPLETED, CANCELLED) else FAILED).inc()
        metrics.queue_time.labels(model).observe(queue)
        if self._started is not None:
            metrics.prompt_tokens.labels(model, metrics.account(self._request.account)).inc(self._prompt_tokens)
        if self.outcome == COMPLETED:
            metrics.latency.labels(model).observe(seconds)
            metrics.request_prompt_tokens.labels(model).observe(self._prompt_tokens)
            metrics.embedded_texts.labels(model).inc(len(self._request.texts))

    def _cancelled_status(self, seconds: float) -> str:
        return "CANCELLED" if self._deadline is None or seconds < self._deadline else "DEADLINE_EXCEEDED"
