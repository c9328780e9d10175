"""Responds to requests that fail outside of runs.

The causes are unknown routes, unsupported methods, refused credentials and unexpected exceptions.
"""

import logging
import re
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge.api.openai.errors import OpenAiErrors
from http_bridge.api.reply_writer import ErrorWriter, JsonObject
from http_bridge.api.workers_ai.replies import RestErrors
from http_bridge.errors import ApiError, internal_error
from http_bridge.observability.request_log import request_log
from http_bridge.protocol.reply_schemas import REST_ERROR

REQUEST_ID_HEADER = "cf-ai-req-id"
# Key in the state of a request: the ErrorWriter of its route. Without one, `_errors` chooses a format by the path.
_ERRORS_KEY = "errors"
_MAX_SHOWN = 200
# Paths that OpenAI's clients use. Errors on these paths have OpenAI's format, even if no route matches.
_OPENAI_PATH = re.compile(r"/+(client/v4/accounts/[^/]*/ai/)?v1(/.*)?")
_BASE_HINT = (
    ": OpenAI's routes are below /v1 and /client/v4/accounts/{account}/ai/v1. "
    "Set the client's base address to one of them"
)
# Hints for common mistakes in a client's base address.
_HINTS = (
    (re.compile(r".*/(chat/completions|completions|responses|embeddings|models)/?"), _BASE_HINT),
    (
        # The last part matches any text, so that the match never continues with a later /run/. In a long path with many
        # of them, a search from each would take seconds.
        re.compile(r"(?!/client/v4/accounts/)[\s\S]*?/run/[\s\S]+"),
        ": Workers AI's routes begin with /client/v4/accounts/{account}/ai/run",
    ),
)
logger = logging.getLogger(__name__)


class WithErrorFormat:
    """ASGI application that calls `app` and formats its errors with `errors`."""

    def __init__(self, app: ASGIApp, errors: ErrorWriter) -> None:
        self._app = app
        self.errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][_ERRORS_KEY] = self.errors
        await self._app(scope, receive, send)


async def unrouted(request: Request, error: Exception) -> Response:
    """Respond to a request without a route (400/7000) or with a method that its route does not have (405/7001)."""
    path = request.scope["path"]
    if isinstance(error, HTTPException) and error.status_code == 405:
        refusal = ApiError(405, 7001, f"{request.method} not supported for requested URI.")
        return _answer(request, refusal, {"allow": ", ".join(_methods(request))})
    hint = next((hint for pattern, hint in _HINTS if pattern.fullmatch(path)), "")
    if hint is _BASE_HINT:
        request.scope["state"][_ERRORS_KEY] = OpenAiErrors()
    sentence = f"No route for that URI{hint}"
    return _answer(
        request, ApiError(400, 7000, sentence, openai_message=f"{sentence} ({request.method} {path[:_MAX_SHOWN]})")
    )


async def refused(request: Request, error: Exception) -> Response:
    """Respond to an ApiError that was raised before an endpoint, or by an endpoint that runs no model."""
    return _answer(request, error) if isinstance(error, ApiError) else await failed(request, error)


async def failed(request: Request, error: Exception) -> Response:
    """Respond to an unexpected exception. Starlette raises it again afterwards, and the HTTP server logs its cause."""
    request_id = request_log(request.scope).request_id = str(uuid.uuid4())
    logger.error("request %s to %r failed: %r", request_id, request.scope["path"], error)
    payload = dict(_errors(request, RestErrors()).payload(internal_error(), request_id))
    return JSONResponse(payload, 500, {REQUEST_ID_HEADER: request_id})


def refusal(error: ApiError, errors: ErrorWriter | None) -> ASGIApp:
    """Return an ASGI application that answers with `error`, formatted by `errors`; None: in the format for the path."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if errors is not None:
            scope["state"][_ERRORS_KEY] = errors
        await _answer(Request(scope), error)(scope, receive, send)

    return refuse


def router_payload(error: ApiError) -> JsonObject:
    """Return the body of an error as Cloudflare's router formats it: for errors of routes, methods and credentials."""
    entry = {"code": error.code, "message": error.description}
    return {"result": None, "success": False, "errors": [entry], "messages": []}


class _RouterErrors(ErrorWriter):
    schema = REST_ERROR

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        return router_payload(error)


def _answer(request: Request, error: ApiError, headers: dict[str, str] | None = None) -> Response:
    request_log(request.scope).error_code = error.code
    errors = _errors(request, _RouterErrors())
    payload = dict(errors.payload(error, str(uuid.uuid4())))
    return JSONResponse(payload, errors.status(error), {**(headers or {}), **error.headers})


def _errors(request: Request, default: ErrorWriter) -> ErrorWriter:
    state: dict[str, Any] = request.scope.get("state", {})
    errors = state.get(_ERRORS_KEY)
    if isinstance(errors, ErrorWriter):
        return errors
    return OpenAiErrors() if _OPENAI_PATH.fullmatch(request.scope["path"]) else default


def _methods(request: Request) -> list[str]:
    """Return the methods of all routes that match the request's path."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in routes for method in getattr(route, "methods", None) or ()})
