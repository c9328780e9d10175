"""Limits the number of connections and the time of each of their phases, as an extension of uvicorn's protocol.

    connecting ─► headers ─► body ─► reply ─► idle ─► headers …
            header timeout   │      write      idle timeout
                          body timeout (for runs: in endpoints/run.py, in the route's error format)

Timers are set at the start of a phase, never for a token. Does not depend on routes or runs.
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
from http_bridge.settings.bridge import Settings

_RETRY_AFTER_SECONDS = 1
# Time that a refused connection stays open, so that the client can read the answer.
_LINGER_SECONDS = 1.0
# Largest number of refused connections that stay open.
_MAX_LINGERING = 128
# Shortest time in seconds between two warnings about refused connections.
_WARNING_SECONDS = 60.0
# Clauses of errors for the client, by a part of h11's message about the invalid request.
_FAULTS = {
    "Missing mandatory Host": "HTTP/1.1 requires a Host header",
    "multiple Host": "there is more than one Host header",
    "conflicting Content-Length": "there are two Content-Length headers with different values",
    "bad Content-Length": "Content-Length is not a number",
    "Transfer-Encoding": "Transfer-Encoding is chunked, or there is none",
    "chunk": "the body's chunks are malformed",
}
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ConnectionLimits:
    """The state that all connections of one bridge share.

    Attributes:
        settings: Limits and timeouts.
        metrics: Counts connections.
        lingering: Refused connections that are still open.
        warned_at: Time of the last warning about refused connections, on the event loop's clock.
    """

    settings: Settings
    metrics: Metrics
    lingering: set["LimitedProtocol"] = field(default_factory=set)
    warned_at: float = -math.inf


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol with the limits of one bridge. `limited_protocol` creates the subclass that uvicorn uses.

    A connection beyond the limit is answered with 503/7009 and closed before its request is read. A health check on a
    new connection is therefore refused too. A probe that reuses a connection is not affected. A warning is logged at
    most once a minute.
    """

    conn: Connection
    shared: ClassVar[ConnectionLimits]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settings = self.shared.settings
        self.conn = Connection(self.settings.max_header_bytes)
        self.timeout_keep_alive = self.settings.idle_timeout_seconds  # type: ignore[assignment]  # uvicorn accepts any number
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        # The phase of the read timer ("headers" or "body"), and the request that preceded this phase.
        self._reading: tuple[str, object] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Accept the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self.connections.discard(self)
            self._refuse_connection()
        else:
            self._watch_reading("headers")
            self.shared.metrics.connections.set(len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers and count the connection as closed."""
        self.shared.lingering.discard(self)
        self._watch_reading(None)
        self._stop_write_timer()
        super().connection_lost(exc)
        self.shared.metrics.connections.set(len(self.connections))
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Process received bytes; bytes of a refused connection are ignored."""
        if self not in self.shared.lingering:
            super().data_received(data)
            self._update_timers()

    def on_response_complete(self) -> None:
        """Start the timer of the next phase after a reply."""
        super().on_response_complete()
        self._update_timers()

    def pause_writing(self) -> None:
        """Start the write timer: the client reads more slowly than the reply arrives.

        `send` then waits, and with it the call to the inference server, so memory holds at most the transport's high-water
        mark and one event.
        """
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        """Stop the write timer, unless the connection is closing: its last bytes have a time limit too."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_write_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._update_timers()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not valid HTTP, or whose headers are too large."""
        limit = self.settings.max_header_bytes
        default = f"this is not HTTP/1.1, or request line and headers have more than {limit} bytes"
        clause = next((clause for part, clause in _FAULTS.items() if part in self.conn.fault), default)
        self._end(ApiError(400, 6003, f"Invalid request headers: {clause}"))

    def eof_received(self) -> None:
        """Answer a client that closed its sending side before the reply, and treat the client as disconnected."""
        if self.cycle is not None and not self.cycle.response_started and not self.transport.is_closing():
            self.cycle.disconnected = True
            sentence = (
                "The client closed its side of the connection before the reply. Keep it open until the reply ends."
            )
            self.transport.write(_answer(ApiError(400, 6003, sentence)))

    def _update_timers(self) -> None:
        """Set the timers for the current phase. Called after every event that can change the phase."""
        if self in self.shared.lingering:
            return
        if self.transport.is_closing():
            self._watch_reading(None)
            # Unsent bytes keep a closing connection open.
            if self.transport.get_write_buffer_size():
                self._start_write_timer()
        elif self.conn.is_in_headers:
            self._watch_reading("headers")
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            # The request was refused before its end. uvicorn discards the rest of its body; the timer limits that time.
            self._watch_reading("body")
        else:
            self._watch_reading(None)

    def _watch_reading(self, phase: str | None) -> None:
        reading = None if phase is None else (phase, self.cycle)
        if reading == self._reading and phase is not None:
            return
        self._reading = reading
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        if phase == "headers":
            self._read_timer = self.loop.call_later(self.settings.header_timeout_seconds, self._end_headers)
        elif phase == "body":
            self._read_timer = self.loop.call_later(self.settings.body_timeout_seconds, self._close)

    def _end_headers(self) -> None:
        # A connection without a request gets no answer: browsers open connections in advance, and would mistake it for
        # the answer to their next request.
        if self.conn.is_in_headers:
            self._end(ApiError(408, 3007, "Request timeout"))
        else:
            self._close()

    def _refuse_connection(self) -> None:
        self.shared.metrics.connections_refused.inc()
        now = self.loop.time()
        if now - self.shared.warned_at > _WARNING_SECONDS:
            self.shared.warned_at = now
            logger.warning(
                "all %d connections are in use: further ones are refused with 503", self.settings.max_connections
            )
        self._end(ApiError(503, 7009, "Too many connections", retry_after_seconds=_RETRY_AFTER_SECONDS))

    def _end(self, error: ApiError) -> None:
        """Respond to a request that did not reach the application, and close the connection.

        An immediate close would reset the connection while the client still sends, and the client could lose the answer. The
        connection therefore reads and discards data for a short time.
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
        self._update_timers()

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            # The run of this connection receives the disconnect and cancels its call.
            self._write_timer = self.loop.call_later(self.settings.write_timeout_seconds, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def limited_protocol(settings: Settings, metrics: Metrics) -> type[LimitedProtocol]:
    """Return the protocol class for the connections of one bridge.

    uvicorn creates an instance for each connection, so the shared state is an attribute of the class.
    """

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
