"""Records one call of Run from its arrival to its end, for metrics and log. Times are seconds of time.monotonic()."""

import logging
import time

from inference_server.errors import TailraceError
from inference_server.generation import Completed, Delta, Event, Started, Timings
from inference_server.observability.metrics import CANCELLED, COMPLETED, FAILED, UNKNOWN_MODEL, Metrics
from tailrace.v1 import inference_pb2 as pb

logger = logging.getLogger(__name__)


class RunRecord:
    """The record of one call of Run. `finish` updates the metrics and writes the log line.

    A run that is marked as neither succeeded nor failed before `finish` counts as cancelled.

    Attributes:
        request_id: Id of the request.
        outcome: "completed", "cancelled", or the reason of the error.
    """

    def __init__(
        self, metrics: Metrics, request: pb.RunRequest, request_id: str, *, is_known: bool, deadline: float | None
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
        # Batch requests may wait for hours, which must not raise the latency metrics that alerts use.
        self._is_batch = request.priority == pb.PRIORITY_BATCH
        self._deadline = deadline
        self._arrived = time.monotonic()
        self.outcome = CANCELLED
        self._status: str | None = None
        self._accepted: float | None = None
        self._started: Started | None = None
        self._admitted = 0.0
        self._first_token = 0.0
        self._last_token = 0.0
        self._num_tokens = 0
        self._completed: Completed | None = None

    def accept(self) -> None:
        """Count the request as accepted."""
        self._accepted = time.monotonic()
        account = self._metrics.account(self._request.account)
        self._metrics.accepted.labels(self._model).inc()
        self._prompt_tokens = self._metrics.prompt_tokens.labels(self._model, account)
        self._generated = self._metrics.generation_tokens.of(self._model, account)
        self._gaps = self._metrics.token_gaps.of(self._model)

    def observe(self, event: Event) -> None:
        """Record an event that is about to be sent. This runs for every token of every stream."""
        if not isinstance(event, Delta):
            self._observe_phase(event)
            return
        num_tokens = event.num_tokens
        if not num_tokens:
            return
        self._generated.value += num_tokens
        self._num_tokens += num_tokens
        if self._last_token:
            # An event may have several tokens. Their times are not known, so equal intervals are recorded.
            self._gaps.add((event.last_token - self._last_token) / num_tokens, num_tokens)
        else:
            self._first_token = event.last_token
            if not self._is_batch:
                self._metrics.first_token.labels(self._model).observe(event.last_token - self._arrived)
        self._last_token = event.last_token

    def _observe_phase(self, event: Event) -> None:
        if isinstance(event, Started):
            self._started, self._admitted = event, time.monotonic()
            self._prompt_tokens.inc(event.prompt_tokens)
            # The admission position shows whether requests that arrived later were admitted earlier.
            logger.info(
                "admitted %(request_id)s account %(account)r, position %(admission_position)d",
                {
                    "request_id": self.request_id,
                    "account": self._request.account,
                    "admission_position": event.admission_position,
                },
            )
        elif isinstance(event, Completed):
            self._completed = event
            # The end token is not in any delta.
            self._generated.value += event.usage.completion_tokens - self._num_tokens

    def mark_succeeded(self) -> None:
        """Record that the whole reply was sent."""
        self.outcome, self._status = COMPLETED, "OK"

    def mark_failed(self, error: TailraceError) -> None:
        """Record the error that the client gets."""
        self.outcome, self._status = error.reason, error.grpc_code

    def finish(self) -> None:
        """Update the metrics and write the log line."""
        now = time.monotonic()
        timings = None
        if self._accepted is None:
            self._metrics.refused.labels(self._model, self.outcome).inc()
        else:
            timings = self._completed.timings if self._completed else self._timings(self._accepted, now)
            self._count_end(timings, now - self._arrived)
        self._log(timings, now - self._arrived)

    def _timings(self, accepted: float, now: float) -> Timings:
        """Return the durations of the phases that an unfinished reply has reached, from this record's times."""
        admitted = self._admitted or now
        first = self._first_token or now
        return Timings(admitted - accepted, max(0.0, first - admitted), max(0.0, self._last_token - first))

    def _count_end(self, timings: Timings, seconds: float) -> None:
        """Update the metrics of an accepted request that has ended after `seconds`.

        The queue time includes failed and cancelled requests: without those that were cancelled in the queue, it would
        look too short. It excludes batch requests. The prefill time includes all requests that had a first token. The
        other histograms that this method updates cover completed requests only.
        """
        metrics, model = self._metrics, self._model
        metrics.ended.labels(model, self.outcome if self.outcome in (COMPLETED, CANCELLED) else FAILED).inc()
        if not self._is_batch:
            metrics.queue_time.labels(model).observe(timings.queue)
        if self._first_token:
            metrics.prefill_time.labels(model).observe(timings.prefill)
        if self._completed is None or self.outcome != COMPLETED:
            return
        usage = self._completed.usage
        metrics.finished.labels(model, self._completed.finish_reason.value).inc()
        metrics.latency.labels(model).observe(seconds)
        metrics.decode_time.labels(model).observe(timings.decode)
        metrics.inference_time.labels(model).observe(timings.prefill + timings.decode)
        metrics.request_prompt_tokens.labels(model).observe(usage.prompt_tokens)
        metrics.request_generation_tokens.labels(model).observe(usage.completion_tokens)

    def _log(self, timings: Timings | None, seconds: float) -> None:
        started, completed = self._started, self._completed
        logger.info(
            "run %(request_id)s %(model)s: %(outcome)s after %(total_seconds).2f s",
            {
                "request_id": self.request_id,
                "model": self._request.model,
                "outcome": self.outcome,
                "total_seconds": round(seconds, 6),
                "status": self._status or self._cancelled_status(seconds),
                "account": self._request.account or None,
                "adapter": self._request.adapter or None,
                "finish_reason": completed.finish_reason.value if completed else None,
                "prompt_tokens": started.prompt_tokens if started else None,
                "completion_tokens": completed.usage.completion_tokens if completed else self._num_tokens,
                "cached_tokens": completed.usage.cached_tokens if completed else None,
                "reasoning_tokens": completed.usage.reasoning_tokens if completed else None,
                "queue_seconds": round(timings.queue, 6) if timings else None,
                "prefill_seconds": round(timings.prefill, 6) if timings else None,
                "decode_seconds": round(timings.decode, 6) if timings else None,
                "ttft_seconds": round(self._first_token - self._arrived, 6) if self._first_token else None,
            },
        )

    def _cancelled_status(self, seconds: float) -> str:
        return "CANCELLED" if self._deadline is None or seconds < self._deadline else "DEADLINE_EXCEEDED"
