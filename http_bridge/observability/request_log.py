"""Each HTTP request from its headers to its end, as the metrics and the log tell it.

Observed(app, metrics)      around the whole application: one record for each request
Route("run", path, …)       names the route; never the path, of which there is any number
record_of(scope)            for whoever learns more about the request on the way
"""

import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Any

from starlette import routing
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from http_bridge.observability.metrics import Metrics, RouteLabel
from tailrace.v1.inference_pb2 import Completed, FinishReason

_RECORD_KEY = "record"
# What proxies call the status of a request whose client did not wait for one.
_CLIENT_CLOSED_REQUEST = 499
# Probes and pages would drown everything else.
_QUIET: tuple[RouteLabel, ...] = ("health", "pages")
_logger = logging.getLogger(__name__)


class Record:
    """One request. What is public is filled in by those who handle it."""

    def __init__(self, metrics: Metrics, receive: Receive, send: Send) -> None:
        self.request_id: str | None = None
        self.account: str | None = None
        self.model: str | None = None
        self.stream: bool | None = None
        self.error_code: int | None = None
        self.completed: Completed | None = None
        self._metrics = metrics
        self._receive = receive
        self._send = send
        self._route: RouteLabel = "other"
        self._began = time.monotonic()
        self._status = 0
        self._first_event: float | None = None
        self._last: Message = {"type": "nothing"}
        self._is_gone = False
        self._is_in_flight = False

    def enter(self, route: RouteLabel) -> None:
        self._route = route
        self._is_in_flight = True
        self._metrics.in_flight.labels(route).inc()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_answered:
            self._is_gone = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        # It is called for each token of every stream: no coroutine of its own, and after the first event no more than this.
        if self._first_event is None:
            self._look(message)
        self._last = message
        return self._send(message)

    def _look(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message.get("more_body") and message.get("body"):
            self._first_event = time.monotonic() - self._began
            self._metrics.first_event.labels(self._route).observe(self._first_event)

    @property
    def _is_answered(self) -> bool:
        return self._last["type"] == "http.response.body" and not self._last.get("more_body", False)

    def end(self) -> None:
        metrics, route, seconds = self._metrics, self._route, time.monotonic() - self._began
        # Where the application raises instead of answering, the HTTP server answers for it.
        status = self._status or (_CLIENT_CLOSED_REQUEST if self._is_gone else 500)
        metrics.requests.labels(route, status).inc()
        metrics.duration.labels(route).observe(seconds)
        if self._is_gone:
            metrics.clients_gone.labels(route).inc()
        if self._is_in_flight:
            metrics.in_flight.labels(route).dec()
        level = logging.DEBUG if route in _QUIET else logging.INFO
        if _logger.isEnabledFor(level):
            message = "%(route)s: %(status)d after %(total_seconds).2f s"
            _logger.log(level, message, self._fields(status, seconds))

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
            **_told_by_server(self.completed),
        }


def _told_by_server(completed: Completed | None) -> dict[str, object]:
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


class Observed:
    """ASGI application: `app`, with a record of each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(self._metrics, receive, send)
        scope.setdefault("state", {})[_RECORD_KEY] = record
        try:
            await self._app(scope, record.receive, record.send)
        finally:
            record.end()
            # It holds the connection, which holds the scope: a circle, and those are looked for seldom.
            del scope["state"][_RECORD_KEY]


class Route(routing.Route):
    """A route and its label in the metrics."""

    def __init__(self, label: RouteLabel, path: str, endpoint: Any, *, methods: Sequence[str] | None = None) -> None:
        super().__init__(path, endpoint, methods=methods)
        self._label = label

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).enter(self._label)
        await super().handle(scope, receive, send)


def record_of(scope: Scope) -> Record:
    record: Record = scope["state"][_RECORD_KEY]
    return record
