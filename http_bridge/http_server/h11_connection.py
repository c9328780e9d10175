"""HTTP/1.1 towards clients: h11, a short way for the chunks of a stream, and a limit on headers that holds.

Knows no ASGI and no events.
"""

from typing import Any

import h11


class Connection(h11.Connection):
    """Frames chunks by itself once h11 has framed one: its state stays the same from one to the next, yet it takes long."""

    _is_chunking = False

    def __init__(self, max_header_bytes: int) -> None:
        """max_header_bytes: of request line and headers together; beyond it `next_event` raises RemoteProtocolError."""
        super().__init__(h11.SERVER, max_header_bytes)
        self._max_header_bytes = max_header_bytes

    @property
    def is_in_headers(self) -> bool:
        """Whether a request has begun, and its headers have not come to their end."""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0])

    def next_event(self) -> Any:  # h11's union of events
        event = super().next_event()
        # h11 looks at the size only while the end is missing: what comes in one piece would pass.
        if isinstance(event, h11.Request) and _size(event) > self._max_header_bytes:
            raise h11.RemoteProtocolError("the headers are too long", error_status_hint=431)
        return event

    def send(self, event: Any) -> Any:  # h11's overloads
        if not isinstance(event, h11.Data):
            self._is_chunking = False
            return super().send(event)
        chunk = b"%x\r\n%b\r\n" % (len(event.data), event.data)
        if self._is_chunking and event.data and self.our_state is h11.SEND_BODY:
            return chunk
        output = super().send(event)
        self._is_chunking = output == chunk
        return output


def _size(request: h11.Request) -> int:
    fields = sum(len(name) + len(value) + len(": \r\n") for name, value in request.headers)
    return len(request.method) + len(request.target) + len("  HTTP/1.1\r\n") + fields + len("\r\n")
