"""Serves the pages for browsers: the playground at / and the API reference at /docs.

The pages load nothing from other hosts.

The few files are read when the process starts and served from memory as a whole. A request can select neither a byte
range nor a path of the file system.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]

_FOLDER = Path(__file__).parent / "playground"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# The pages insert a model's reply as text, never as HTML. If that ever failed, this policy would still block other scripts
# and other hosts.
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


def pages() -> Mapping[str, Endpoint]:
    """Return the endpoints of all pages and their files by their paths."""
    files = [path for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES]
    return {
        "/": _without_websocket(_page("index.html")),
        "/docs": _page("docs.html"),
        **{f"/playground/{path.name}": _page(path.name) for path in files},
    }


def _page(name: str) -> Endpoint:
    path = _FOLDER / name
    content, media_type = path.read_bytes(), _TYPES[path.suffix]

    async def page(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=media_type)

    return page


def _without_websocket(page: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        # miniflare's remote bindings first try a WebSocket on this path, and continue with HTTP after a refusal.
        if "upgrade" in request.headers:
            raise HTTPException(404)
        return await page(request)

    return answer
