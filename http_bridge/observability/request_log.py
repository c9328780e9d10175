"""Measures and logs each HTTP request, from its headers to its end.

RequestLogMiddleware(app, metrics)   wraps the whole application and creates one RequestLog for each request
request_log(scope)                   returns it to the code that determines the route, the model or the error
"""

import logging
import time
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from http_bridge.observability.metrics import Metrics
from http_bridge.protocol.sse import COMMENT
from tailrace.v1.inference_pb2 import Completed, FinishReason

# Label of requests without a route, and of routes that have no label.
OTHER_ROUTE = "other"
_LOG_KEY = "record"
# Proxies use this status for a request whose client disconnected before the answer.
_CLIENT_CLOSED_REQUEST = 499
# Probes and pages are logged at the level debug, because they would hide the runs.
_QUIET = ("health", "pages")
logger = logging.getLogger(__name__)


class RequestLog:
    """The log line and the metrics of one request. The handlers of the request set the public attributes.

    Attributes:
        request_id: UUID of a request to a model, or of one that failed unexpectedly; None for every other request.
        account: Account of the request; empty if it has none.
        model: Model of the request; empty if it has none.
        stream: Whether the client requested a stream.
        error_code: Cloudflare's error code, if the answer is an error.
        completed: The inference server's last message of a run. With several choices: the first choice's message, with
            the usage of all.
        tags: A Worker's own tags of a run.
    """

    def __init__(self, metrics: Metrics, receive: Receive, send: Send) -> None:
        self.request_id: str | None = None
        self.account: str | None = None
        self.model: str | None = None
        self.stream: bool | None = None
        self.error_code: int | None = None
        self.completed: Completed | None = None
        self.tags: tuple[str, ...] = ()
        self._metrics = metrics
        self._receive = receive
        self._send = send
        self._route = OTHER_ROUTE
        self._began = time.monotonic()
        self._status = 0
        self._first_event: float | None = None
        self._last: Message = {"type": "nothing"}
        self._is_gone = False
        self._is_in_flight = False

    def enter(self, route: str) -> None:
        """Set the route's label and count the request as in flight."""
        self._route = route
        self._is_in_flight = True
        self._metrics.in_flight.labels(route).inc()

    async def receive(self) -> Message:
        """Pass on a message from the client and record whether the client disconnected before the end of the answer."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_answered:
            self._is_gone = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Pass on a message to the client and record its status and the time of the first event."""
        # Called for each token of every stream, so it is not a coroutine and does little after the first event.
        if self._first_event is None:
            self._examine(message)
        self._last = message
        return self._send(message)

    def _examine(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message.get("more_body") and message.get("body") not in (None, b"", COMMENT):
            self._first_event = time.monotonic() - self._began
            self._metrics.first_event.labels(self._route).observe(self._first_event)

    @property
    def _is_answered(self) -> bool:
        return self._last["type"] == "http.response.body" and not self._last.get("more_body", False)

    def finish(self) -> None:
        """Count the request and log its line."""
        metrics, route, seconds = self._metrics, self._route, time.monotonic() - self._began
        # If the application raised instead of answering, the HTTP server answers 500.
        status = self._status or (_CLIENT_CLOSED_REQUEST if self._is_gone else 500)
        metrics.requests.labels(route, status).inc()
        metrics.duration.labels(route).observe(seconds)
        if self._is_gone:
            metrics.clients_gone.labels(route).inc()
        if self._is_in_flight:
            metrics.in_flight.labels(route).dec()
        level = logging.DEBUG if route in _QUIET else logging.INFO
        if logger.isEnabledFor(level):
            message = "%(route)s: %(status)d after %(total_seconds).2f s"
            logger.log(level, message, self._fields(status, seconds))

    def _fields(self, status: int, seconds: float) -> dict[str, object]:
        return {
            "request_id": self.request_id,
            "route": self._route,
            "status": status,
            "error_code": self.error_code,
            "account": self.account or None,
            "model": self.model or None,
            "stream": self.stream,
            "total_seconds": round(seconds, 6),
            "first_event_seconds": None if self._first_event is None else round(self._first_event, 6),
            "client_gone": self._is_gone or None,
            "tags": ",".join(self.tags) or None,
            **_server_fields(self.completed),
        }


def _server_fields(completed: Completed | None) -> dict[str, object]:
    names = ("finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens")
    phases = ("queue", "prefill", "decode")
    if completed is None:
        return dict.fromkeys((*names, *(f"{phase}_seconds" for phase in phases)))
    usage, timings = completed.usage, completed.timings
    reason = FinishReason.Name(completed.finish_reason).removeprefix("FINISH_REASON_").lower()
    return {
        **dict(zip(names, (reason, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), strict=True)),
        **{f"{phase}_seconds": round(getattr(timings, phase).ToNanoseconds() / 1e9, 6) for phase in phases},
    }


class RequestLogMiddleware:
    """ASGI application that calls `app` with a RequestLog for each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        log = RequestLog(self._metrics, receive, send)
        scope.setdefault("state", {})[_LOG_KEY] = log
        try:
            await self._app(scope, log.receive, log.send)
        finally:
            log.finish()
            # The log refers to the connection, which refers to the scope. The cycle is broken here, because the
            # garbage collector runs rarely.
            del scope["state"][_LOG_KEY]


def request_log(scope: Scope) -> RequestLog:
    """Return the log of the request with this scope."""
    log: RequestLog = scope["state"][_LOG_KEY]
    return log
