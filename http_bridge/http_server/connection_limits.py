"""What a connection may take from the bridge: uvicorn's protocol, with an end to everything that a client can keep open.

    connecting ─► headers ─► body ─► reply ─► idle ─► headers …
            header timeout   │      write      idle timeout
                          body timeout (of a run: in run.py, which tells it in the route's form)

Timers are set when one of these begins, never for a token. Knows connections; knows nothing of routes or runs.
"""

import asyncio
import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from http_bridge.error_handlers import router_payload
from http_bridge.errors import ApiError
from http_bridge.http_server.h11_connection import Connection
from http_bridge.observability.metrics import Metrics
from http_bridge.settings import Settings

_RETRY_AFTER_SECONDS = 1
# A connection that is refused is given so long to hear of it, and so many are at once.
_LINGER_SECONDS = 1.0
_MAX_LINGERING = 128
_TELL_SECONDS = 60.0
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ConnectionLimits:
    """What the connections of one bridge share. `told_at`: when the log last told that there are too many."""

    settings: Settings
    metrics: Metrics
    lingering: set["LimitedProtocol"] = field(default_factory=set)
    told_at: float = -math.inf


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol within the limits of one bridge. Made by `limited_protocol`.

    A connection beyond the largest number is answered 503 with code 7009 and closed, whatever it is for: a health check on a
    new connection too, because nobody knows what it asks before it is read. The log tells it, at most once a minute. Who
    probes on a connection that is kept is not affected.
    """

    conn: Connection
    shared: ClassVar[ConnectionLimits]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settings = self.shared.settings
        self.conn = Connection(self.settings.max_header_bytes)
        self.timeout_keep_alive = self.settings.idle_timeout_seconds  # type: ignore[assignment]  # any number does
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        # What the timer for reading belongs to: the headers or the body that follow this request.
        self._reading: tuple[str, object] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self.connections.discard(self)
            self._refuse_connection()
        else:
            self._watch_reading("headers")
            self.shared.metrics.connections.set(len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.lingering.discard(self)
        self._watch_reading(None)
        self._stop_write_timer()
        super().connection_lost(exc)
        self.shared.metrics.connections.set(len(self.connections))
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self not in self.shared.lingering:
            super().data_received(data)
            self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        # `send` waits from now on, and with it the reading of the reply from the server: no more than the transport's
        # high-water mark and one event are kept here.
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        # The last bytes of a connection that is being closed are waited for no longer either.
        if not self.transport.is_closing():
            self._stop_write_timer()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or its headers are too long."""
        self._end(
            ApiError(
                400,
                6003,
                "Invalid request headers: this is not HTTP/1.1, or request line and headers have more than "
                f"{self.settings.max_header_bytes} bytes",
            )
        )

    def _look(self) -> None:
        """After everything that may have brought the connection from one state into the next."""
        if self in self.shared.lingering:
            return
        if self.transport.is_closing():
            self._watch_reading(None)
            # What is still to be written keeps a closing connection open.
            if self.transport.get_write_buffer_size():
                self._start_write_timer()
        elif self.conn.is_in_headers:
            self._watch_reading("headers")
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            # Answered before its end, as too long or too slow: uvicorn throws the rest away, but not for ever.
            self._watch_reading("body")
        else:
            self._watch_reading(None)

    def _watch_reading(self, what: str | None) -> None:
        reading = None if what is None else (what, self.cycle)
        if reading == self._reading and what is not None:
            return
        self._reading = reading
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        if what == "headers":
            self._read_timer = self.loop.call_later(self.settings.header_timeout_seconds, self._end_headers)
        elif what == "body":
            self._read_timer = self.loop.call_later(self.settings.body_timeout_seconds, self._close)

    def _end_headers(self) -> None:
        # Browsers connect ahead of requests, and would take an answer for that to the next one.
        if self.conn.is_in_headers:
            self._end(ApiError(408, 3007, "Request timeout"))
        else:
            self._close()

    def _refuse_connection(self) -> None:
        self.shared.metrics.connections_refused.inc()
        now = self.loop.time()
        if now - self.shared.told_at > _TELL_SECONDS:
            self.shared.told_at = now
            logger.warning("all %d connections are taken: more are refused with 503", self.settings.max_connections)
        self._end(ApiError(503, 7009, "Too many connections", retry_after_seconds=_RETRY_AFTER_SECONDS))

    def _end(self, error: ApiError) -> None:
        """Answer what never came to the application, and close.

        Closed at once, the kernel would reset the connection because of what the client still sends, and the answer could
        be lost: for a moment that is read, and thrown away.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_answer(error))
        is_running = self.cycle is not None and not self.cycle.response_complete
        if is_running or len(self.shared.lingering) >= _MAX_LINGERING or not self.transport.can_write_eof():
            self._close()
            return
        self._watch_reading(None)
        self.shared.lingering.add(self)
        self.transport.write_eof()
        self._read_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        self._look()

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            # Whoever runs for this connection is told of its end, and cancels.
            self._write_timer = self.loop.call_later(self.settings.write_timeout_seconds, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def limited_protocol(settings: Settings, metrics: Metrics) -> type[LimitedProtocol]:
    """The protocol for the connections of one bridge."""

    class Limited(LimitedProtocol):
        pass

    Limited.shared = ConnectionLimits(settings, metrics)
    return Limited


def _answer(error: ApiError) -> bytes:
    body = json.dumps(router_payload(error)).encode()
    lines = [
        b"HTTP/1.1 %d %b" % (error.status, STATUS_PHRASES[error.status]),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-content-type-options: nosniff",
        b"connection: close",
    ]
    if error.retry_after_seconds is not None:
        lines.append(b"retry-after: %d" % error.retry_after_seconds)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
