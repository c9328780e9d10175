"""Sends requests to a bridge, blocking."""

import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import httpx2

from tailrace.endpoint import Endpoint, trace_context
from tailrace.request import RunInput, invalid_value
from tailrace.rest.body import base_url, body, headers, route
from tailrace.rest.errors import connection_error, late, request_id_of, response_error
from tailrace.rest.events import EventReader
from tailrace.rest.replies import embed_body, embeddings, models
from tailrace.rest.session import CONNECT_SECONDS, limits, verification
from tailrace.types import Embeddings, Event, Model


class RestTransport:
    """A pool of connections to one bridge. Thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Set up the pool. No connection is opened yet."""
        self._endpoint = endpoint
        self._base = base_url(endpoint)
        self._http = httpx2.Client(
            headers=headers(endpoint),
            verify=verification(endpoint),
            # A proxy from the environment cannot reach this machine's own loopback.
            trust_env=not endpoint.is_local,
            limits=limits(),
        )
        self._open: set[httpx2.Response] = set()  # replies that are being read

    def stream(self, run: RunInput, timeout: float | None) -> Generator[Event, None, None]:
        """Yield the events of one reply. Closing the iterator closes the connection, which cancels the request."""
        started = time.monotonic()
        request = self._request("POST", route(run), timeout, body(run))
        try:
            response = self._http.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise connection_error(error, self._endpoint, timeout) from None
        self._open.add(response)
        try:
            with _Alarm(response, started, timeout) as alarm:
                yield from self._events(response, alarm, EventReader(run.model, request_id_of(response)))
        finally:
            self._open.discard(response)
            response.close()

    def embed(self, texts: Sequence[str], model: str, dimensions: int | None, timeout: float | None) -> Embeddings:
        """Return the vectors of the texts."""
        response = self._ask("POST", "/embeddings", timeout, embed_body(texts, model, dimensions))
        return embeddings(response, model)

    def models(self, timeout: float | None) -> list[Model]:
        """Return the models of the bridge's servers."""
        return models(self._ask("GET", "/models", timeout))

    def close(self) -> None:
        """Close all connections. Threads that read a reply get an error at once."""
        for response in tuple(self._open):
            _end_read(response)
        self._http.close()

    def _events(self, response: httpx2.Response, alarm: "_Alarm", reader: EventReader) -> Iterator[Event]:
        try:
            if response.status_code != 200:
                response.read()
                raise response_error(response)
            yield reader.start()
            for data in response.iter_bytes():
                yield from reader.feed(data)
        except httpx2.HTTPError as error:
            if alarm.rang:
                raise late(alarm.timeout, reader.request_id) from None
            raise connection_error(error, self._endpoint, alarm.timeout, reader.request_id) from None
        if alarm.rang and not reader.is_done:
            raise late(alarm.timeout, reader.request_id)
        reader.end()

    def _ask(self, method: str, path: str, timeout: float | None, document: Any = None) -> httpx2.Response:
        started = time.monotonic()
        request = self._request(method, path, timeout, document)
        try:
            response = self._http.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise connection_error(error, self._endpoint, timeout) from None
        try:
            with _Alarm(response, started, timeout) as alarm:
                response.read()
        except httpx2.HTTPError as error:
            if not alarm.rang:
                raise connection_error(error, self._endpoint, timeout) from None
        finally:
            response.close()
        if alarm.rang:
            raise late(timeout, request_id_of(response))
        return response

    def _request(self, method: str, path: str, timeout: float | None, document: Any = None) -> httpx2.Request:
        connect = CONNECT_SECONDS if timeout is None else min(timeout, CONNECT_SECONDS)
        try:
            return self._http.build_request(
                method,
                self._base + path,
                json=document,
                headers=trace_context(),
                timeout=httpx2.Timeout(timeout, connect=connect),
            )
        except (ValueError, TypeError) as error:
            raise invalid_value(error) from None


class _Alarm:
    """Ends a blocking read at a point in time. A read's own timeout starts again with each piece of a reply."""

    def __init__(self, response: httpx2.Response, started: float, timeout: float | None) -> None:
        self._response = response
        self.timeout = timeout
        self.rang = False
        self._timer: threading.Timer | None = None
        if timeout is not None:
            self._timer = threading.Timer(max(0.0, started + timeout - time.monotonic()), self._ring)

    def __enter__(self) -> "_Alarm":
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        if self._response.is_closed:  # its connection may already serve another request
            return
        self.rang = True
        _end_read(self._response)


def _end_read(response: httpx2.Response) -> None:
    """End another thread's blocking read of a response. Closing the connection alone would not."""
    connection = response.extensions.get("network_stream")
    opened = connection and connection.get_extra_info("socket")
    if isinstance(opened, socket.socket):
        try:
            # This shuts down the plain socket, even below TLS.
            socket.socket.shutdown(opened, socket.SHUT_RDWR)
        except OSError:
            pass  # the reply has just ended
