"""The Worker binding's own little service, and the three ways to it: directly, through miniflare, through wrangler 3.

    directly       POST /run, GET /ai-api/models/search          the Workers runtime over a plain service
    miniflare      POST / with MF-URL and MF-Header-* headers    its remote bindings
    wrangler 3     …/ai/run/proxy with X-Forwarded               by environment variables alone

The other two wrap the first: the wrapped request is unwrapped and handled as if it had come directly. Knows paths and
headers; knows nothing of what is asked.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

_MINIFLARE_URL = b"mf-url"
_MINIFLARE_PREFIX = b"mf-header-"
_FORWARDED = b"x-forwarded"
_RUN_URL = "http://workers-binding.ai/run"
_Header = tuple[bytes, bytes]


class Binding:
    """ASGI application: answers by the path alone, whatever the host. Anything else raises HTTPException 404 or 405."""

    def __init__(self, endpoints: Mapping[tuple[str, str], ASGIApp]) -> None:
        """endpoints: by method and path."""
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get((scope["method"], scope["path"]))
        if endpoint is None:
            raise HTTPException(405 if scope["path"] in [path for _, path in self._endpoints] else 404)
        scope.setdefault("path_params", {})
        await endpoint(scope, receive, send)


class Miniflare:
    """Unwraps what miniflare's remote bindings send; what is not wrapped goes to `other`."""

    def __init__(self, binding: ASGIApp, other: ASGIApp) -> None:
        self._binding = binding
        self._other = other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        url = Headers(scope=scope).get(_MINIFLARE_URL.decode())
        if url is None:
            await self._other(scope, receive, send)
            return
        headers = [
            (name.removeprefix(_MINIFLARE_PREFIX), value)
            for name, value in scope["headers"]
            if name.startswith(_MINIFLARE_PREFIX)
        ]
        await self._binding(_unwrapped(scope, url, headers), receive, send)


class Wrangler:
    """Unwraps what wrangler 3 sends. Before 3.90 it does not say which URL was asked for: then it was a run."""

    def __init__(self, binding: ASGIApp) -> None:
        self._binding = binding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        url = Headers(scope=scope).get(_FORWARDED.decode(), _RUN_URL)
        await self._binding(_unwrapped(scope, url, scope["headers"]), receive, send)


def _unwrapped(scope: Scope, url: str, headers: list[_Header]) -> Scope:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise HTTPException(404) from None
    return {**scope, "path": parts.path, "query_string": parts.query.encode(), "headers": headers}
