"""Records an embedding request as a span, with a child span for the time in the queue. Imports OpenTelemetry's API."""

import time
from typing import Any

from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inference_server.errors import TailraceError
from inference_server.observability.tracing.base import EmbedTrace, Metadata
from tailrace.v1.inference_pb2 import EmbedRequest
from tailrace_shared.tracing import attribute_names

_METHOD = "tailrace.v1.InferenceService/Embed"
_COMPLETED = "completed"
_CODES = {_COMPLETED: "OK", "cancelled": "CANCELLED"} | {
    error.reason: error.grpc_code for error in TailraceError.__subclasses__()
}
_W3C = TraceContextTextMapPropagator()
_MAX_TEXT = 256  # longest model name in attributes: the request is recorded before it is validated


class EmbedSpan(EmbedTrace):
    """The trace of an embedding request as OpenTelemetry spans."""

    def __init__(self, tracer: Tracer, request: EmbedRequest, request_id: str, metadata: Metadata) -> None:
        """Start the span of an embedding request.

        Args:
            tracer: Creates the spans.
            request: The request, which is not validated yet.
            request_id: Its id.
            metadata: Metadata of the call, with the W3C context of the client's trace if there is one.
        """
        self._tracer = tracer
        self._began = time.monotonic()
        self._epoch = time.time_ns() - int(self._began * 1e9)
        self._accepted: float | None = None
        self._started: float | None = None
        self._prompt_tokens: int | None = None
        self._model = request.model[:_MAX_TEXT]
        attributes: dict[str, Any] = {
            attribute_names.RPC_SYSTEM: "grpc",
            attribute_names.RPC_METHOD: _METHOD,
            attribute_names.OPERATION: "embeddings",
            attribute_names.PROVIDER: "tailrace",
            attribute_names.REQUEST_MODEL: self._model,
            attribute_names.RESPONSE_ID: request_id,
            attribute_names.NUM_TEXTS: len(request.texts),
        }
        if request.HasField("dimensions"):
            attributes[attribute_names.DIMENSIONS] = request.dimensions
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        self._span = tracer.start_span(
            f"embeddings {self._model}",
            _W3C.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=self._time(self._began),
        )

    @property
    def is_recording(self) -> bool:
        """True if the span is sampled, as the client's trace or the OTEL_* variables determine."""
        return self._span.is_recording()

    def accepted(self) -> None:
        """Record the beginning of the queue phase."""
        self._accepted = time.monotonic()

    def computed(self, started: float | None, prompt_tokens: int) -> None:
        """Record the end of the queue phase, `started`, and the number of tokens of all texts."""
        self._started, self._prompt_tokens = started, prompt_tokens

    def finish(self, outcome: str) -> None:
        """End the span of the request, and add the span of its time in the queue."""
        now = time.monotonic()
        if self._accepted is not None:
            context = set_span_in_context(self._span)
            queue = self._tracer.start_span(attribute_names.QUEUE, context, start_time=self._time(self._accepted))
            queue.end(self._time(max(self._accepted, self._started or now)))
        self._span.set_attribute(attribute_names.RPC_STATUS, _CODES.get(outcome, "INTERNAL"))
        if self._prompt_tokens is not None:
            self._span.set_attribute(attribute_names.RESPONSE_MODEL, self._model)
            self._span.set_attribute(attribute_names.INPUT_TOKENS, self._prompt_tokens)
        if outcome != _COMPLETED:
            self._span.set_attribute(attribute_names.ERROR_TYPE, outcome)
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._time(now))

    def _time(self, seconds: float) -> int:
        return self._epoch + int(seconds * 1e9)
