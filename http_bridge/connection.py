"""HTTP/1.1 towards clients: uvicorn on h11, and a short way for the chunks of a stream. Knows no ASGI and no events."""

from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Request line and headers together, in bytes.
MAX_HEADER_BYTES = 64 * 1024


class Protocol(H11Protocol):
    """uvicorn's protocol on the connection below."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Connection(h11.SERVER, MAX_HEADER_BYTES)


class _Connection(h11.Connection):
    """Frames chunks by itself once h11 has framed one: its state stays the same from one to the next, yet it takes long."""

    _is_chunking = False

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
