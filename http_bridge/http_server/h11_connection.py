"""Extends h11's connection: frames stream chunks faster, limits the size of headers strictly, and shortens absolute targets.

Does not depend on ASGI.
"""

import re
from typing import Any

import h11

_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


class Connection(h11.Connection):
    """h11's connection, with faster framing of chunks.

    h11 frames the first chunk of a reply. This class frames the further chunks itself, because they do not change h11's
    state.
    """

    _is_chunking = False

    def __init__(self, max_header_bytes: int) -> None:
        """Create a server's connection. `fault` is h11's message about the last invalid request; empty if there is none.

        Args:
            max_header_bytes: Largest size of request line and headers together; beyond it, `next_event` raises
                RemoteProtocolError.
        """
        super().__init__(h11.SERVER, max_header_bytes)
        self._max_header_bytes = max_header_bytes
        self.fault = ""

    @property
    def is_in_headers(self) -> bool:
        """True if a request has begun and its headers are not complete."""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0])

    def next_event(self) -> Any:  # h11 does not export the type of its events
        """Return h11's next event.

        Raises:
            RemoteProtocolError: The client sent invalid HTTP or too large headers.
        """
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.fault = str(error)
            raise
        # h11 checks the size of incomplete headers only, so large headers in one packet would pass.
        if isinstance(event, h11.Request) and _size(event) > self._max_header_bytes:
            self.fault = "the headers are too long"
            raise h11.RemoteProtocolError(self.fault, error_status_hint=431)
        return _in_origin_form(event) if isinstance(event, h11.Request) else event

    def send(self, event: Any) -> Any:  # the overloads of h11's method are not repeated here
        """Return the bytes to send for h11's event."""
        if not isinstance(event, h11.Data):
            self._is_chunking = False
            return super().send(event)
        chunk = b"%x\r\n%b\r\n" % (len(event.data), event.data)
        if self._is_chunking and event.data and self.our_state is h11.SEND_BODY:
            return chunk
        output = super().send(event)
        self._is_chunking = output == chunk
        return output


def _in_origin_form(request: h11.Request) -> h11.Request:
    """Return the request with a path as its target. The host of an absolute target (RFC 9112) replaces the Host header."""
    found = _ABSOLUTE.match(request.target)
    if found is None:
        return request
    rest = request.target[found.end() :]
    others = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"host"]
    return h11.Request(
        method=request.method,
        target=rest if rest.startswith(b"/") else b"/" + rest,
        headers=[(b"Host", found[1]), *others],
        http_version=request.http_version,
    )


def _size(request: h11.Request) -> int:
    fields = sum(len(name) + len(value) + len(": \r\n") for name, value in request.headers)
    return len(request.method) + len(request.target) + len("  HTTP/1.1\r\n") + fields + len("\r\n")
