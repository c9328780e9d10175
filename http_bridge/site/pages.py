"""The pages for people: the playground at /, the API reference at /docs. They need nothing from elsewhere.

Their few files are read once and served from memory, whole: no ranges, no paths of a file system.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from http_bridge.observability.request_log import Route
from http_bridge.protocol.schemas import Inputs
from http_bridge.site.openapi import openapi

_FOLDER = Path(__file__).parent / "playground"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Whatever a model writes is shown as text; this holds even if that fails once: no script but ours, and nowhere to send to.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "data:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_Endpoint = Callable[[Request], Awaitable[Response]]


def routes(inputs: Inputs) -> list[BaseRoute]:
    """inputs: what the reference describes."""
    return [
        Route("pages", "/", _without_websocket(_page("index.html")), methods=["GET"]),
        Route("pages", "/docs", _page("docs.html"), methods=["GET"]),
        Route("pages", "/openapi.json", openapi(inputs), methods=["GET"]),
        *(
            Route("pages", f"/playground/{path.name}", _page(path.name), methods=["GET"])
            for path in sorted(_FOLDER.iterdir())
            if path.suffix in _TYPES
        ),
    ]


def _page(name: str) -> _Endpoint:
    path = _FOLDER / name
    content, media_type = path.read_bytes(), _TYPES[path.suffix]

    async def page(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=media_type)

    return page


def _without_websocket(page: _Endpoint) -> _Endpoint:
    async def answer(request: Request) -> Response:
        # miniflare's remote bindings try a WebSocket here first, and go on without one when it is refused.
        if "upgrade" in request.headers:
            raise HTTPException(404)
        return await page(request)

    return answer
