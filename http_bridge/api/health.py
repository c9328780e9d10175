"""Endpoints for health probes. Their answers contain no data of clients, so they need no token and accept any host name."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.upstream.client import Upstream


async def healthz(request: Request) -> Response:
    """Answer 200: the bridge runs."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Answer 200 if an inference server is serving, otherwise 503 with the reason."""
    upstream: Upstream = request.state.upstream
    reason = await upstream.why_not_ready()
    if reason is None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": reason}, 503)
