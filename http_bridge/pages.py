"""The pages for people: the playground at /, the API reference at /docs. Static files, which need nothing from elsewhere."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from http_bridge.openapi import openapi

_FOLDER = Path(__file__).parent / "playground"
_HEADERS = {
    # Whatever a model writes is shown as text; this holds even if that fails once.
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes() -> list[BaseRoute]:
    return [
        Route("/", _playground, methods=["GET"]),
        Route("/docs", _reference, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Mount("/playground", StaticFiles(directory=_FOLDER)),
    ]


async def _playground(request: Request) -> Response:
    # miniflare's remote bindings try a WebSocket here first, and go on without one when it is refused.
    if "upgrade" in request.headers:
        raise HTTPException(404)
    return FileResponse(_FOLDER / "index.html", headers=_HEADERS)


async def _reference(request: Request) -> Response:
    return FileResponse(_FOLDER / "docs.html", headers=_HEADERS)
