"""Records the bridge's spans: one for the HTTP request, and within it one for each call to an inference server.

Imports OpenTelemetry's API. Does not depend on the exporter.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
from opentelemetry.context import Context as SpanContext
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from http_bridge.observability.tracing.base import TRACE_KEY, CallTrace, RequestTrace, TraceContext, trace_context
from tailrace.v1.inference_pb2 import EmbedRequest, FinishReason, RunRequest, RunResponse
from tailrace_shared.tracing import attribute_names as names

_METHOD = "tailrace.v1.InferenceService/Run"
_EMBED_METHOD = "tailrace.v1.InferenceService/Embed"
_W3C = TraceContextTextMapPropagator()
# The convertor of a parameter in a route's path, such as {model:name}.
_CONVERTOR = re.compile(r":\w+}")
_MAX_PATH = 1024
# OTLP's integers are signed 64-bit; a larger seed would make the exporter drop the whole batch of spans.
_MAX_INT = 2**63 - 1


class TracedApp:
    """ASGI application that calls `app` and records a span for each request."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = _CONVERTOR.sub("}", str(getattr(scope.get("route"), "path", scope["path"])))
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            _W3C.extract(dict(trace_context(scope["headers"]))),
            kind=SpanKind.SERVER,
            attributes={
                names.HTTP_METHOD: scope["method"],
                names.HTTP_ROUTE: route,
                names.URL_PATH: scope["path"][:_MAX_PATH],
                names.URL_SCHEME: scope["scheme"],
            },
        )
        scope["state"][TRACE_KEY] = RequestSpans(scope, self._tracer, span)
        response = _Response(span, send)
        try:
            await self._app(scope, receive, response.send)
        except HTTPException as error:
            response.set_status(error.status_code)
            raise
        finally:
            response.finish()
            del scope["state"][TRACE_KEY]  # breaks a reference cycle: the trace refers to the scope


class _Response:
    """Records the status of an answer and whether it was sent completely."""

    def __init__(self, span: Span, send: Send) -> None:
        self._span = span
        self._send = send
        self._is_complete = False

    def send(self, message: Message) -> Awaitable[None]:
        # Not a coroutine: this is called for every token of every stream.
        if message["type"] == "http.response.start":
            self._span.set_attribute(names.HTTP_STATUS, message["status"])
            if message["status"] >= 500:
                _fail(self._span, str(message["status"]))
        elif not message.get("more_body"):
            self._is_complete = True
        return self._send(message)

    def set_status(self, status: int) -> None:
        """Record the status of an answer that an exception handler writes."""
        self._span.set_attribute(names.HTTP_STATUS, status)
        self._is_complete = True

    def finish(self) -> None:
        if not self._is_complete:
            _fail(self._span, "cancelled", "the client disconnected before the end of the answer")
        self._span.end()


class RequestSpans(RequestTrace):
    """The trace of one HTTP request, with its span."""

    def __init__(self, scope: Scope, tracer: Tracer, span: Span) -> None:
        super().__init__(scope)
        self._tracer = tracer
        self._span = span

    def call(self, request: RunRequest, *, request_id: str, is_stream: bool) -> CallTrace:
        """Return the trace of the call that sends `request`, with a new client span."""
        parent = set_span_in_context(self._span)
        attributes = _request_attributes(request) | {names.RESPONSE_ID: request_id, names.REQUEST_STREAM: is_stream}
        span = self._tracer.start_span(_METHOD, parent, kind=SpanKind.CLIENT, attributes=attributes)
        return CallSpan(span, _injected(set_span_in_context(span)))

    def embed_call(self, request: EmbedRequest, *, request_id: str) -> CallTrace:
        """Return the trace of an embedding call, with a new client span."""
        attributes: dict[str, Any] = {
            names.RPC_SYSTEM: "grpc",
            names.RPC_METHOD: _EMBED_METHOD,
            names.OPERATION: "embeddings",
            names.PROVIDER: "tailrace",
            names.REQUEST_MODEL: request.model,
            names.RESPONSE_ID: request_id,
            names.NUM_TEXTS: len(request.texts),
        }
        parent = set_span_in_context(self._span)
        span = self._tracer.start_span(_EMBED_METHOD, parent, kind=SpanKind.CLIENT, attributes=attributes)
        return CallSpan(span, _injected(set_span_in_context(span)))


class CallSpan(CallTrace):
    """The span of one call to the inference server."""

    def __init__(self, span: Span, context: TraceContext) -> None:
        super().__init__(context)
        self._span = span
        self._began = time.monotonic()
        # Error of the events. In a stream it becomes the last event and does not reach __aexit__.
        self._error: BaseException | None = None

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        error = error or self._error
        if error is None:
            self._span.set_attribute(names.RPC_STATUS, "OK")
        elif isinstance(error, grpc.aio.AioRpcError):
            self._failed(error.code().name)
        elif isinstance(error, asyncio.CancelledError):
            self._failed("CANCELLED")
        else:
            _fail(self._span, type(error).__name__)
        self._span.end()

    def observe(self, events: AsyncIterator[RunResponse]) -> AsyncIterator[RunResponse]:
        """Return the reply's events and record the first token, the finish reason and an error."""
        return self._observe(events) if self._span.is_recording() else events

    async def _observe(self, events: AsyncIterator[RunResponse]) -> AsyncIterator[RunResponse]:
        has_begun = False
        try:
            async for event in events:
                if not has_begun and event.HasField("delta"):
                    has_begun = True
                    self._span.add_event(names.FIRST_TOKEN)
                    self._span.set_attribute(names.TIME_TO_FIRST_CHUNK, time.monotonic() - self._began)
                elif event.HasField("completed"):
                    reason = FinishReason.Name(event.completed.finish_reason).removeprefix("FINISH_REASON_").lower()
                    self._span.set_attribute(names.FINISH_REASONS, [reason])
                yield event
        except Exception as error:
            self._error = error
            raise

    def _failed(self, code: str) -> None:
        self._span.set_attribute(names.RPC_STATUS, code)
        _fail(self._span, code)


def _fail(span: Span, kind: str, description: str | None = None) -> None:
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(StatusCode.ERROR, description)


def _injected(context: SpanContext) -> TraceContext:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context)
    return tuple(carrier.items())


def _request_attributes(request: RunRequest) -> dict[str, Any]:
    sampling = request.sampling
    given = {field.name: value for field, value in sampling.ListFields() if field.name in names.REQUEST_SAMPLING}
    return {
        names.RPC_SYSTEM: "grpc",
        names.RPC_METHOD: _METHOD,
        names.OPERATION: "chat" if request.HasField("chat") else "text_completion",
        names.PROVIDER: "tailrace",
        names.REQUEST_MODEL: request.model,
        **{names.REQUEST_SAMPLING[name]: _rounded(value) for name, value in given.items() if value <= _MAX_INT},
        **({names.REQUEST_STOP_SEQUENCES: list(sampling.stop)} if sampling.stop else {}),
    }


def _rounded(value: float) -> float:
    """Return the value without the digits that appear when a 32-bit float becomes 64 bits wide: 0.7, not 0.699999988."""
    return value if isinstance(value, int) else round(value, 6)
