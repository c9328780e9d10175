"""Records a run as a span, with child spans for the phases queue, prefill and decode.

Imports OpenTelemetry's API. Does not export the spans.
"""

import time
from collections.abc import AsyncIterable, AsyncIterator
from itertools import accumulate, pairwise
from typing import Any

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inference_server.errors import TailraceError
from inference_server.generation import Completed, Delta, Event, Started, ToolCall
from inference_server.observability.tracing.base import Metadata, RunTrace
from inference_server.observability.tracing.genai_messages import input_messages, output_messages
from tailrace.v1.inference_pb2 import RunRequest
from tailrace_shared.tracing import attribute_names

_PHASES = (attribute_names.QUEUE, attribute_names.PREFILL, attribute_names.DECODE)
_METHOD = "tailrace.v1.InferenceService/Run"
_COMPLETED = "completed"
_CODES = {_COMPLETED: "OK", "cancelled": "CANCELLED"} | {
    error.reason: error.grpc_code for error in TailraceError.__subclasses__()
}
_W3C = TraceContextTextMapPropagator()
# Longest text and list in attributes. They are limited here, because the request is recorded before it is validated.
_MAX_TEXT, _MAX_ITEMS = 256, 16
# OTLP's integers are signed. A larger seed would make the exporter drop the whole batch of spans.
_MAX_INT = 2**63 - 1


class SpanTrace(RunTrace):
    """The trace of a run as OpenTelemetry spans. Times of time.monotonic() are converted to nanoseconds since 1970."""

    def __init__(
        self, tracer: Tracer, request: RunRequest, request_id: str, metadata: Metadata, *, has_text: bool
    ) -> None:
        """Start the span of the run.

        Args:
            tracer: Creates the spans.
            request: The request, which is not validated yet.
            request_id: Its id.
            metadata: Metadata of the call, with the W3C context of the client's trace if there is one.
            has_text: True if the span contains the text of prompt and reply.
        """
        self._tracer = tracer
        self._has_text = has_text
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._tool_calls: list[ToolCall] = []
        self._began = time.monotonic()
        self._epoch = time.time_ns() - int(self._began * 1e9)
        self._accepted: float | None = None
        self._admitted: float | None = None
        self._admission_position = 0
        self._first: float | None = None
        self._completed: Completed | None = None
        described = _request_attributes(request) | {attribute_names.RESPONSE_ID: request_id}
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        self._model = described[attribute_names.REQUEST_MODEL]
        self._span = tracer.start_span(
            f"{described[attribute_names.OPERATION]} {self._model}",
            _W3C.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=described,
            start_time=self._time(self._began),
        )
        if has_text and self.is_recording:
            self._span.set_attribute(attribute_names.INPUT_MESSAGES, input_messages(request))

    @property
    def is_recording(self) -> bool:
        """True if the span is sampled, as the client's trace or the OTEL_* variables determine."""
        return self._span.is_recording()

    def accepted(self) -> None:
        """Record the beginning of the queue phase."""
        self._accepted = time.monotonic()

    async def observe(self, events: AsyncIterable[Event]) -> AsyncIterator[Event]:
        """Yield the events, and record their times and, if `has_text`, their text."""
        async for event in events:
            if isinstance(event, Delta):
                self._first = self._first or time.monotonic()
                if self._has_text:
                    self._texts.append(event.text)
                    self._thoughts.append(event.reasoning)
                    self._tool_calls += event.tool_calls
            elif isinstance(event, Started):
                self._admitted = time.monotonic()
                self._admission_position = event.admission_position
            elif isinstance(event, Completed):
                self._completed = event
            yield event

    def finish(self, outcome: str) -> None:
        """End the span of the run, and add the spans of its phases."""
        now = time.monotonic()
        points = self._points(now)
        if len(points) > len(_PHASES):
            self._span.set_attribute(attribute_names.TIME_TO_FIRST_CHUNK, points[-2] - self._began)
        self._add_phases(points, outcome)
        self._span.set_attributes(self._response_attributes(outcome))
        if outcome != _COMPLETED:
            _fail(self._span, outcome)
        self._span.end(self._time(now))

    def _points(self, now: float) -> list[float]:
        """Return the beginnings of the phases that were reached, and the end of the last one."""
        if self._accepted is None:
            return []
        if self._completed is None:
            return [time for time in (self._accepted, self._admitted, self._first, now) if time is not None]
        timings, num_tokens = self._completed.timings, self._completed.usage.completion_tokens
        num_phases = 1 if self._admitted is None else 2 if not num_tokens else 3
        points = accumulate((timings.queue, timings.prefill, timings.decode)[:num_phases], initial=self._accepted)
        return [min(point, now) for point in points]

    def _add_phases(self, points: list[float], outcome: str) -> None:
        context = set_span_in_context(self._span)
        phases = list(zip(_PHASES, pairwise(points), strict=False))
        for name, (start, end) in phases:
            span = self._tracer.start_span(
                name, context, attributes=self._phase_attributes(name), start_time=self._time(start)
            )
            if self._completed is None and name == phases[-1][0]:
                _fail(span, outcome)
            span.end(self._time(end))

    def _phase_attributes(self, name: str) -> dict[str, Any]:
        if name == attribute_names.QUEUE:
            return {} if self._admitted is None else {attribute_names.ADMISSION_POSITION: self._admission_position}
        if self._completed is None:
            return {}
        usage = self._completed.usage
        if name == attribute_names.PREFILL:
            return {
                attribute_names.PROMPT_TOKENS: usage.prompt_tokens,
                attribute_names.CACHED_PROMPT_TOKENS: usage.cached_tokens,
            }
        return {attribute_names.COMPLETION_TOKENS: usage.completion_tokens}

    def _response_attributes(self, outcome: str) -> dict[str, Any]:
        attributes: dict[str, Any] = {attribute_names.RPC_STATUS: _CODES.get(outcome, "INTERNAL")}
        if (completed := self._completed) is not None:
            attributes[attribute_names.RESPONSE_MODEL] = self._model
            attributes[attribute_names.FINISH_REASONS] = [completed.finish_reason.value]
            attributes[attribute_names.INPUT_TOKENS] = completed.usage.prompt_tokens
            attributes[attribute_names.OUTPUT_TOKENS] = completed.usage.completion_tokens
            attributes[attribute_names.CACHED_TOKENS] = completed.usage.cached_tokens
        if self._has_text and self._admitted is not None:
            reason = outcome if completed is None else completed.finish_reason.value
            attributes[attribute_names.OUTPUT_MESSAGES] = output_messages(
                "".join(self._texts), self._tool_calls, reason, "".join(self._thoughts)
            )
        return attributes

    def _time(self, seconds: float) -> int:
        return self._epoch + int(seconds * 1e9)


def _fail(span: Span, outcome: str) -> None:
    span.set_attribute(attribute_names.ERROR_TYPE, outcome)
    span.set_status(StatusCode.ERROR)


def _request_attributes(request: RunRequest) -> dict[str, Any]:
    sampling = request.sampling
    given = {
        field.name: value for field, value in sampling.ListFields() if field.name in attribute_names.REQUEST_SAMPLING
    }
    stop = [text[:_MAX_TEXT] for text in sampling.stop[:_MAX_ITEMS]]
    return {
        attribute_names.RPC_SYSTEM: "grpc",
        attribute_names.RPC_METHOD: _METHOD,
        attribute_names.OPERATION: "chat" if request.HasField("chat") else "text_completion",
        attribute_names.PROVIDER: "tailrace",
        attribute_names.REQUEST_MODEL: request.model[:_MAX_TEXT],
        **{
            attribute_names.REQUEST_SAMPLING[name]: _rounded(value)
            for name, value in given.items()
            if value <= _MAX_INT
        },
        **({attribute_names.REQUEST_STOP_SEQUENCES: stop} if stop else {}),
    }


def _rounded(value: float) -> float:
    """Return a value without the digits that appear when a 32-bit float is widened to 64 bits: 0.7, not 0.699999988."""
    return value if isinstance(value, int) else round(value, 6)
