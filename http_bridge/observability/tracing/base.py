"""Tracing without export: each call passes the client's W3C trace context on, and no span is recorded.

spans.py has subclasses that record spans. exporter.py selects the classes.
"""

import re
from collections.abc import AsyncIterator, Iterable

from starlette.types import ASGIApp, Scope

from tailrace.v1.inference_pb2 import EmbedRequest, RunRequest, RunResponse

# Key in the state of a request: its RequestTrace, if spans are recorded.
TRACE_KEY = "trace"
# gRPC metadata of a call to the inference server.
TraceContext = tuple[tuple[str, str], ...]

# W3C Trace Context: version 00 ends with the flags; later versions may have more fields.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,64})?")
_MAX_TRACESTATE = 512


class CallTrace:
    """The trace of one call to the inference server. Use it as a context manager around the call.

    Attributes:
        context: Metadata that continues the trace on the server.
    """

    def __init__(self, context: TraceContext) -> None:
        self.context = context

    async def __aenter__(self) -> "CallTrace":
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        pass

    def observe(self, events: AsyncIterator[RunResponse]) -> AsyncIterator[RunResponse]:
        """Return the reply's events unchanged; a subclass may record them."""
        return events


class RequestTrace:
    """The trace of one HTTP request."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def call(self, request: RunRequest, *, request_id: str, is_stream: bool) -> CallTrace:
        """Return the trace of the call that sends `request`."""
        return CallTrace(trace_context(self._scope["headers"]))

    def embed_call(self, request: EmbedRequest, *, request_id: str) -> CallTrace:
        """Return the trace of the call that sends an embedding request."""
        return CallTrace(trace_context(self._scope["headers"]))


class NullTracing:
    """Tracing that records nothing."""

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return `app` unchanged. A subclass wraps it, so that each request gets a span."""
        return app

    def start(self) -> None:
        """Do nothing. A subclass logs the destination of the spans."""

    async def close(self) -> None:
        """Do nothing. A subclass sends the remaining spans, which takes a few seconds at most."""


def request_trace(scope: Scope) -> RequestTrace:
    """Return the trace of the request with this scope."""
    trace: RequestTrace | None = scope["state"].get(TRACE_KEY)
    return trace or RequestTrace(scope)


def trace_context(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext:
    """Return the client's traceparent, with its tracestate if that is valid; empty without a valid traceparent."""
    given = [(name, value.decode("latin-1")) for name, value in headers if name in (b"traceparent", b"tracestate")]
    parents = [value for name, value in given if name == b"traceparent"]
    found = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None or (found[1] == "00" and found[2] is not None):
        return ()
    state = ",".join(value for name, value in given if name == b"tracestate")
    if not state or len(state) > _MAX_TRACESTATE or not (state.isascii() and state.isprintable()):
        return (("traceparent", found[0]),)
    return (("traceparent", found[0]), ("tracestate", state))
