"""The Worker binding's endpoints, and the three ways in which requests reach them.

    Client             Request as it arrives                        How the client is connected

    Workers runtime    POST /run or another route of the binding    as a plain service
    miniflare          POST / with MF-URL and MF-Header-* headers   as a remote binding
    wrangler 3         …/ai/run/proxy with X-Forwarded              by environment variables

miniflare and wrangler wrap the direct request. This module unwraps it, and then handles it like a direct one. The
module does not read the body of a request.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge.auth.bearer import check_inner_account

MINIFLARE_URL = "mf-url"
_MINIFLARE_PREFIX = b"mf-header-"
_FORWARDED = b"x-forwarded"
_RUN_URL = "http://workers-binding.ai/run"
_Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of the binding: its method, its path in Starlette's notation, and its ASGI application."""

    method: str
    path: str
    app: ASGIApp


class Binding:
    """ASGI application that selects an endpoint by method and path, regardless of the host.

    Raises:
        HTTPException: 404 for an unknown path, 405 for an unsupported method.
        ApiError: 403/10000 if the account in the path is not the token's, 404/7003 if it is not a valid account.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        """Serve `endpoints`. The first one that matches a request is used."""
        self._endpoints = [(compile_path(endpoint.path), endpoint) for endpoint in endpoints]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        for (pattern, _, convertors), endpoint in self._endpoints:
            if endpoint.method == method and (found := pattern.match(path)):
                parameters = {name: convertors[name].convert(value) for name, value in found.groupdict().items()}
                if "account" in parameters:
                    check_inner_account(scope, parameters["account"])
                scope["path_params"] = {**scope.get("path_params", {}), **parameters}
                await endpoint.app(scope, receive, send)
                return
        raise HTTPException(405 if self.has_path(path) else 404)

    def has_path(self, path: str) -> bool:
        """Return True if an endpoint has this path, with any method."""
        return any(pattern.match(path) for (pattern, _, _), _ in self._endpoints)


class Miniflare:
    """ASGI application that unwraps requests of miniflare's remote bindings; other requests go to `other`."""

    def __init__(self, binding: ASGIApp, other: ASGIApp) -> None:
        self._binding = binding
        self._other = other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        url = Headers(scope=scope).get(MINIFLARE_URL)
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
    """ASGI application that unwraps requests of wrangler 3. Before 3.90 they have no URL: every request is a run."""

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
