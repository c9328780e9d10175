"""The bridge as a Starlette application: routes, who may use them, and errors before any model.

Knows which routes need credentials; knows nothing of runs.
"""

import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge import translate
from http_bridge.auth import TokenCheck
from http_bridge.config import Settings
from http_bridge.errors import ApiError, internal_error
from http_bridge.run import REQUEST_ID_HEADER, RunEndpoint
from http_bridge.upstream import Upstream

RUN_PATH = "/client/v4/accounts/{account}/ai/run/{model:path}"
_logger = logging.getLogger(__name__)


class State(TypedDict):
    """What the lifespan shares with every request."""

    upstream: Upstream


def create_app(settings: Settings) -> Starlette:
    """The application; its lifespan opens the one channel to the inference server and closes it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        upstream = Upstream(settings.grpc_address)
        try:
            yield {"upstream": upstream}
        finally:
            await upstream.close()

    app = Starlette(
        routes=_routes(settings),
        middleware=_middleware(settings),
        # Starlette's types want handlers of Exception; each gets only what it is registered for.
        exception_handlers={HTTPException: _unrouted, ApiError: _refused, Exception: _failed},
        lifespan=lifespan,
    )
    # A path with one slash too many is no route either.
    app.router.redirect_slashes = False
    return app


def _routes(settings: Settings) -> list[Route]:
    check = TokenCheck(settings.api_tokens)
    # A route without a guard is public; keep these two the only ones.
    return [
        Route("/healthz", _healthz),
        Route("/readyz", _readyz),
        Route(RUN_PATH, _Guarded(RunEndpoint(settings), check), methods=["POST"]),
    ]


def _middleware(settings: Settings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=(REQUEST_ID_HEADER, "retry-after"),
        )
    ]


class _Guarded:
    """Lets a request through to `app` if its credentials pass."""

    def __init__(self, app: ASGIApp, check: TokenCheck) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check.check(scope["headers"])
        await self._app(scope, receive, send)


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _readyz(request: Request) -> Response:
    upstream: Upstream = request.state.upstream
    reason = await upstream.why_not_ready()
    if reason is None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": reason}, 503)


async def _unrouted(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        refusal = ApiError(405, 7001, f"{request.method} not supported for requested URI.")
        return _router_error(refusal, dict(error.headers or {}))
    return _router_error(ApiError(400, 7000, "No route for that URI"))


async def _refused(request: Request, error: Exception) -> Response:
    return _router_error(error) if isinstance(error, ApiError) else await _failed(request, error)


async def _failed(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, and the HTTP server logs it with its cause.
    request_id = str(uuid.uuid4())
    _logger.error("request %s to %r failed: %r", request_id, request.scope["path"], error)
    payload = translate.model_error_payload(internal_error(), request_id)
    return JSONResponse(payload, 500, {REQUEST_ID_HEADER: request_id})


def _router_error(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(translate.router_error_payload(error), error.status, headers)
