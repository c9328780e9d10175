"""Runs the requests of an AI Gateway: a list of steps, or a request for one provider. The first successful step answers.

Each step becomes a request to the bridge's own endpoint for its path: /ai/run/{model}, or a POST route of OpenAI's API.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from http_bridge.api.base import LARGE_BODY_BYTES
from http_bridge.api.binding.gateway import WORKERS_AI, no_provider
from http_bridge.errors import ApiError
from http_bridge.http_server.request_body import read_body
from http_bridge.protocol.grpc_errors import request_timeout
from http_bridge.protocol.run_schemas import MAX_STEPS
from http_bridge.protocol.validation.documents import bad_input, load, unpack
from http_bridge.settings.bridge import Settings

_OPENAI = "v1/"
_RUN = "run/"
_STEP_HEADER = b"cf-aig-step"
# Headers of the outer request's body, connection or sender. A step neither inherits nor sets them.
_OUTER_HEADERS = frozenset(
    {"content-length", "content-type", "content-encoding", "transfer-encoding", "host", "connection", "authorization"}
)
_Headers = list[tuple[bytes, bytes]]
# An ASGI application, the path parameters of its request, and the request's query.
_Found = tuple[ASGIApp, dict[str, str], bytes]


class Inner:
    """Finds the endpoint of a provider's path: a model's name, or v1/… for OpenAI's routes."""

    def __init__(self, run: ASGIApp, openai: Mapping[str, ASGIApp]) -> None:
        """Set the endpoints.

        Args:
            run: Endpoint of /ai/run/{model}.
            openai: Endpoints of OpenAI's routes by their path after /v1/.
        """
        self._run = run
        self._openai = openai

    def find(self, endpoint: str) -> _Found | None:
        """Return the ASGI application of a path, its path parameters and its query; None if no endpoint has it."""
        path, _, query = endpoint.lstrip("/").partition("?")
        path = unquote(path)
        if path.startswith(_OPENAI):
            app = self._openai.get(path.removeprefix(_OPENAI))
            return None if app is None else (app, {}, query.encode())
        model = path.removeprefix(_RUN)
        return (self._run, {"model": model}, query.encode()) if model else None


class ProviderEndpoint:
    """ASGI application of /ai-gateway/v1/{account}/{gateway}/workers-ai/{endpoint}: passes requests to that endpoint."""

    def __init__(self, inner: Inner) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._inner.find(scope["path_params"]["endpoint"])
        if found is None:
            raise HTTPException(404)
        app, parameters, _ = found
        await app({**scope, "path_params": {**_account(scope), **parameters}}, receive, send)


class UniversalEndpoint:
    """ASGI application of a gateway's universal endpoint: `[{"provider", "endpoint", "headers", "query"}, …]`."""

    def __init__(self, settings: Settings, inner: Inner) -> None:
        """Create the endpoint. `settings`: limits in bytes and seconds."""
        self._settings = settings
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._settings
        try:
            async with asyncio.timeout(min(settings.body_timeout_seconds, settings.request_timeout_seconds)):
                data = await read_body(scope, receive, settings.max_body_bytes)
        except ClientDisconnect:
            return
        except TimeoutError:
            raise request_timeout() from None
        steps = await _steps(data, settings.max_body_bytes)
        served = [(index, found) for index, step in enumerate(steps) if (found := self._find(step)) is not None]
        if not served:
            raise _refusal(steps[0])
        for index, found in served:
            attempt = _Attempt(send, index, is_last=index == served[-1][0])
            try:
                await _run_step(scope, receive, attempt, found, steps[index])
            except (ApiError, HTTPException):  # raised before a reply, by a route that runs no model
                if index == served[-1][0]:
                    raise
                continue
            if not attempt.has_failed:
                return

    def _find(self, step: Mapping[str, Any]) -> _Found | None:
        return self._inner.find(step["endpoint"]) if step["provider"] == WORKERS_AI else None


class _Attempt:
    """The `send` of one step. Drops its error response, so that the next step can answer, unless it is the last step."""

    def __init__(self, send: Send, index: int, *, is_last: bool) -> None:
        self._send = send
        self._index = index
        self._is_last = is_last
        self.has_failed = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_failed = message["status"] >= 400 and not self._is_last
            message = {**message, "headers": [*message["headers"], (_STEP_HEADER, str(self._index).encode())]}
        if not self.has_failed:
            await self._send(message)


async def _run_step(scope: Scope, receive: Receive, send: Send, found: _Found, step: Mapping[str, Any]) -> None:
    app, parameters, query = found
    body: bytes = step["query"]
    inner = {
        **scope,
        "path_params": {**_account(scope), **parameters},
        "query_string": query,
        "headers": [*_headers(scope, step.get("headers") or {}), (b"content-length", str(len(body)).encode())],
    }
    await app(inner, _with_body(body, receive), send)


def _with_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` with this body. After the body, it waits for the client's disconnect."""
    is_read = False

    async def inner() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return inner


def _headers(scope: Scope, given: Mapping[str, Any]) -> _Headers:
    """Merge the request's headers with those of a step, which take precedence.

    Headers in `_OUTER_HEADERS` are dropped from both, and content-type is set to JSON.
    """
    own = {
        name.lower(): value
        for name, value in given.items()
        if isinstance(value, str) and name.isascii() and value.isascii() and value.isprintable()
    }
    names = _OUTER_HEADERS.union(own)
    kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in names]
    added = [(name.encode(), value.encode()) for name, value in own.items() if name not in _OUTER_HEADERS]
    return [*kept, *added, (b"content-type", b"application/json")]


def _account(scope: Scope) -> dict[str, str]:
    account = scope["path_params"].get("account")
    return {} if account is None else {"account": account}


async def _steps(data: bytes, max_bytes: int) -> list[dict[str, Any]]:
    # A large body is parsed on another thread, as in run.py: parsing megabytes takes a second, which would
    # delay other streams. A compressed body may become a thousand times as large.
    if len(data) < LARGE_BODY_BYTES and data.lstrip()[:1] in (b"[", b"{", b""):
        return _parsed_steps(data, max_bytes)
    return await asyncio.to_thread(_parsed_steps, data, max_bytes)


def _parsed_steps(data: bytes, max_bytes: int) -> list[dict[str, Any]]:
    """Return the steps of a body, with each `query` as JSON.

    Raises:
        ApiError: 400/3003 for an empty body, 400/5006 for an invalid step.
    """
    # `load` accepts only an object, so the list is wrapped in an object.
    document = load(b'{"steps":' + unpack(data, max_bytes) + b"}", max_bytes + 16)
    steps = document["steps"]
    if isinstance(steps, dict):
        steps = [steps]
    if not isinstance(steps, list) or not 1 <= len(steps) <= MAX_STEPS:
        raise bad_input(f"'/' must be an array of 1 to {MAX_STEPS} steps")
    for index, step in enumerate(steps):
        if not isinstance(step, dict):
            raise bad_input(f"'/{index}' is not an object")
        for name, kind in (("provider", str), ("endpoint", str), ("query", dict)):
            if not isinstance(step.get(name), kind):
                word = "a string" if kind is str else "an object"
                raise bad_input(f"required properties at '/{index}' are '{name}', {word}")
        if not isinstance(step.get("headers") or {}, dict):
            raise bad_input(f"'/{index}/headers' is not an object")
    return [{**step, "query": _compact(step["query"])} for step in steps]


def _compact(query: Mapping[str, Any]) -> bytes:
    return json.dumps(query, ensure_ascii=False, separators=(",", ":")).encode()


def _refusal(step: Mapping[str, Any]) -> ApiError:
    if step["provider"] != WORKERS_AI:
        return no_provider(step["provider"])
    return ApiError(
        400, 2008, f"{WORKERS_AI} has no endpoint {step['endpoint'][:200]!r}: name a model, or v1/chat/completions"
    )
