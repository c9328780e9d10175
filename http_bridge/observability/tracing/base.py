"""A run's place in a trace, as far as the bridge does not trace: the caller's W3C context is passed on, and that is all.

spans.py has the same classes for a bridge that traces; otlp.py says which are used.
"""

import re
from collections.abc import AsyncIterator, Iterable

from starlette.types import ASGIApp, Scope

from tailrace.v1.inference_pb2 import RunRequest, RunResponse

# Under this name the state of a request holds its Trace, if it has one.
TRACE_KEY = "trace"
# What goes with a call to the inference server, as gRPC's metadata.
Context = tuple[tuple[str, str], ...]

# W3C: version 00 ends with the flags; later ones may have more behind them.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,64})?")
_MAX_TRACESTATE = 512


class Call:
    """One call to the inference server."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def __aenter__(self) -> "Call":
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        pass

    def watched(self, events: AsyncIterator[RunResponse]) -> AsyncIterator[RunResponse]:
        """The reply's events as they are; a call that is traced looks at them."""
        return events


class Trace:
    """One HTTP request."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def call(self, request: RunRequest, *, request_id: str, is_stream: bool) -> Call:
        """Enter it around the call to the server."""
        return Call(context_of(self._scope["headers"]))


class Tracing:
    """What all requests share."""

    def around(self, app: ASGIApp) -> ASGIApp:
        """The endpoint of a run, with a trace for each request if there are traces."""
        return app

    def start(self) -> None:
        """Say where traces go."""

    async def close(self) -> None:
        """Send what is not sent yet; some seconds at most."""


def trace_of(scope: Scope) -> Trace:
    trace: Trace | None = scope["state"].get(TRACE_KEY)
    return trace or Trace(scope)


def context_of(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    """The caller's traceparent and tracestate, if they are what W3C says they are; nothing else may pass."""
    given = [(name, value.decode("latin-1")) for name, value in headers if name in (b"traceparent", b"tracestate")]
    parents = [value for name, value in given if name == b"traceparent"]
    found = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None or (found[1] == "00" and found[2] is not None):
        return ()
    state = ",".join(value for name, value in given if name == b"tracestate")
    if not state or len(state) > _MAX_TRACESTATE or not (state.isascii() and state.isprintable()):
        return (("traceparent", found[0]),)
    return (("traceparent", found[0]), ("tracestate", state))
