"""Reads the body of a request, within a limit. Uses ASGI's `receive` and does not depend on the format of the body."""

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from http_bridge.errors import ApiError

_MAX_DIGITS = 20  # the limit on a body's size has fewer digits


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: 413/3006 for a body of more than `max_bytes`.
        ClientDisconnect: The client disconnected.
    """
    too_large = ApiError(413, 3006, f"Request is too large (more than {max_bytes} bytes)")
    # A client that announces a body above the limit is refused before the upload. The HTTP server checks that the
    # header Content-Length is a number, but not in a request that is wrapped in another request.
    announced = Headers(scope=scope).get("content-length", "0")
    if announced.isdecimal() and int(announced[:_MAX_DIGITS]) > max_bytes:
        raise too_large
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        data += message.get("body", b"")
        if len(data) > max_bytes:
            raise too_large
        if not message.get("more_body", False):
            return bytes(data)
