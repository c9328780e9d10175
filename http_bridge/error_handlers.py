"""Errors that no run explains: unknown routes, wrong methods and tokens, and what nobody foresaw. One answer for each."""

import logging
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge.api.reply_writer import ErrorForm, JsonObject
from http_bridge.api.workers_ai.replies import RestErrors
from http_bridge.errors import ApiError, internal_error
from http_bridge.observability.request_log import record_of

# Under this name the state of a request holds the ErrorForm of its route; without one, Cloudflare's router speaks.
ERRORS_KEY = "errors"
REQUEST_ID_HEADER = "cf-ai-req-id"
_logger = logging.getLogger(__name__)


async def unrouted(request: Request, error: Exception) -> Response:
    """No route, or none with this method."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        refusal = ApiError(405, 7001, f"{request.method} not supported for requested URI.")
        return _answer(request, refusal, dict(error.headers or {}))
    return _answer(request, ApiError(400, 7000, "No route for that URI"))


async def refused(request: Request, error: Exception) -> Response:
    """An ApiError on the way to an endpoint, or in one that runs no model."""
    return _answer(request, error) if isinstance(error, ApiError) else await failed(request, error)


async def failed(request: Request, error: Exception) -> Response:
    """What nobody foresaw. Starlette raises it again after this answer, and the HTTP server logs it with its cause."""
    request_id = record_of(request.scope).request_id = str(uuid.uuid4())
    _logger.error("request %s to %r failed: %r", request_id, request.scope["path"], error)
    payload = dict(_form(request, RestErrors()).payload(internal_error(), request_id))
    return JSONResponse(payload, 500, {REQUEST_ID_HEADER: request_id})


def router_payload(error: ApiError) -> JsonObject:
    """The body of an error before any model: routes, methods, credentials."""
    entry = {"code": error.code, "message": error.description}
    return {"result": None, "success": False, "errors": [entry], "messages": []}


class _RouterErrors(ErrorForm):
    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        return router_payload(error)


def _answer(request: Request, error: ApiError, headers: dict[str, str] | None = None) -> Response:
    record_of(request.scope).error_code = error.code
    payload = dict(_form(request, _RouterErrors()).payload(error, str(uuid.uuid4())))
    more = {} if error.retry_after_seconds is None else {"retry-after": str(error.retry_after_seconds)}
    return JSONResponse(payload, error.status, {**(headers or {}), **more})


def answering(error: ApiError, form: ErrorForm | None) -> ASGIApp:
    """Return an application that answers with `error`, written as `form` does; without one, as Cloudflare's router does."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if form is not None:
            scope["state"][ERRORS_KEY] = form
        await _answer(Request(scope), error)(scope, receive, send)

    return answer


def _form(request: Request, default: ErrorForm) -> ErrorForm:
    state: dict[str, Any] = request.scope.get("state", {})
    form = state.get(ERRORS_KEY)
    return form if isinstance(form, ErrorForm) else default
