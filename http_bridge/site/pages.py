"""Serves the pages for browsers: the playground at / and the API reference at /docs.

The pages load nothing from other hosts. `make playground` bundles their scripts and styles from `playground/src`.

The few files are read and compressed when the process starts, and served from memory as a whole. A request can select
neither a byte range nor a path of the file system.
"""

import gzip
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]

_FOLDER = Path(__file__).parent / "playground"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
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
    # A browser asks each time whether its copy is current, so a page of a new release never runs scripts of an old one.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
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
    # With mtime=0 the result contains no time: equal content has equal bytes in every process behind a load balancer.
    compressed = gzip.compress(content, compresslevel=9, mtime=0)
    digest = hashlib.sha256(content).hexdigest()[:32]

    async def page(request: Request) -> Response:
        is_compressed = _accepts_gzip(request.headers.get("accept-encoding", ""))
        # The two encodings differ in their bytes, so each has its own tag.
        tag = f'"{digest}-gzip"' if is_compressed else f'"{digest}"'
        headers = {**_HEADERS, "etag": tag}
        if _has_copy(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        if not is_compressed:
            return Response(content, headers=headers, media_type=media_type)
        return Response(compressed, headers={**headers, "content-encoding": "gzip"}, media_type=media_type)

    return page


def _accepts_gzip(accepted: str) -> bool:
    for entry in accepted.lower().split(","):
        coding, _, parameter = entry.partition(";")
        if coding.strip() == "gzip":
            return parameter.replace(" ", "").rstrip("0") not in ("q=", "q=0.", "q=0")
    return False


def _has_copy(tags: str, tag: str) -> bool:
    return tags.strip() == "*" or tag in [entry.strip().removeprefix("W/") for entry in tags.split(",")]


def _without_websocket(page: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        # miniflare's remote bindings first try a WebSocket on this path, and continue with HTTP after a refusal.
        if "upgrade" in request.headers:
            raise HTTPException(404)
        return await page(request)

    return answer
