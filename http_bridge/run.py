"""The run endpoint: one HTTP request, one gRPC call, one reply or one error. The way of a request, top to bottom.

Knows when a reply counts as started and that a client who leaves cancels its call; what requests, replies and errors
look like is known to schemas, translate and sse.
"""

import asyncio
import logging
import secrets
import string
import uuid
from collections.abc import AsyncIterator

import grpc
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from http_bridge import sse, translate
from http_bridge.config import Settings
from http_bridge.disconnect import until_disconnect
from http_bridge.errors import ApiError, internal_error
from http_bridge.schemas import RunBody, parse_body
from http_bridge.upstream import Upstream
from tailrace.v1.inference_pb2 import Completed, RunRequest, RunResponse

REQUEST_ID_HEADER = "cf-ai-req-id"
_MAX_PADDING = 50
_LARGE_BODY_BYTES = 100_000
_logger = logging.getLogger(__name__)


class RunEndpoint:
    """ASGI application of POST /client/v4/accounts/{account}/ai/run/{model}; the path's parts stand in the scope."""

    def __init__(self, settings: Settings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._timeout_seconds = settings.request_timeout_seconds
        self._has_padding = settings.stream_padding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        if not exchange.model:
            raise HTTPException(404)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                data = await _read_body(scope, receive, self._max_body_bytes)
        except ClientDisconnect:
            return
        except TimeoutError:
            await exchange.refuse(translate.request_timeout())
        except ApiError as error:
            await exchange.refuse(error)
        else:
            await until_disconnect(receive, self._answer(exchange, data, scope["state"]["upstream"]))

    async def _answer(self, exchange: "_Exchange", data: bytes, upstream: Upstream) -> None:
        try:
            body, request = await _prepared(data, model=exchange.model, account=exchange.account)
            _logger.info("request %s: model %r, stream %s", exchange.request_id, exchange.model, body.stream)
            timeout_seconds = self._timeout_seconds
            async with upstream.run(request, request_id=exchange.request_id, timeout_seconds=timeout_seconds) as events:
                if body.stream:
                    await exchange.stream(events, has_padding=self._has_padding)
                else:
                    await exchange.reply(events)
        except Exception as error:
            await exchange.refuse(exchange.explain(error))


class _Exchange:
    """One request's side towards the client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.request_id = str(uuid.uuid4())
        self.account: str = scope["path_params"]["account"]
        self.model: str = scope["path_params"]["model"]
        self._asgi = (scope, receive, send)
        self._send = send

    async def reply(self, events: AsyncIterator[RunResponse]) -> None:
        """Send the whole reply as one JSON body."""
        texts: list[str] = []
        completed: Completed | None = None
        async for event in events:
            texts.append(event.delta.text)
            completed = event.completed if event.HasField("completed") else completed
        if completed is None:
            raise _Incomplete
        await self._send_json(200, translate.reply_payload("".join(texts), completed))

    async def stream(self, events: AsyncIterator[RunResponse], *, has_padding: bool) -> None:
        """Send each event of the reply when it exists; a failure becomes the last event, and no [DONE] follows."""
        await self._send({"type": "http.response.start", "status": 200, "headers": self._stream_headers()})
        try:
            completed = await self._send_texts(events, has_padding=has_padding)
            await self._send(_chunk(sse.event(translate.usage_event(completed)) + sse.DONE))
        except Exception as error:
            await self._send(_chunk(sse.event(translate.failure_event(self.explain(error), self.request_id))))
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error; only before anything else was sent."""
        _logger.info("request %s: refused, %d/%d", self.request_id, error.status, error.code)
        headers = {} if error.retry_after_seconds is None else {"retry-after": str(error.retry_after_seconds)}
        await self._send_json(error.status, translate.model_error_payload(error, self.request_id), headers)

    def explain(self, error: Exception) -> ApiError:
        """What the client is told about a failure; the log gets the cause."""
        if isinstance(error, ApiError):
            return error
        if not isinstance(error, grpc.aio.AioRpcError):
            _logger.error("request %s failed", self.request_id, exc_info=error)
            return internal_error()
        api_error = translate.rpc_api_error(error, model=self.model)
        level = logging.WARNING if api_error.status >= 500 else logging.DEBUG
        _logger.log(level, "request %s: gRPC %s: %s", self.request_id, error.code().name, error.details())
        return api_error

    async def _send_texts(self, events: AsyncIterator[RunResponse], *, has_padding: bool) -> Completed:
        # Here, and in what it calls, each microsecond is paid for every token of every stream.
        completed: Completed | None = None
        async for event in events:
            if text := event.delta.text:
                await self._send(_chunk(sse.text_event(text, _padding() if has_padding else None)))
            elif event.HasField("completed"):
                completed = event.completed
        if completed is None:
            raise _Incomplete
        return completed

    def _stream_headers(self) -> list[tuple[bytes, bytes]]:
        return [
            # Bare, like that of the JSON replies: a charset behind it breaks the Workers runtime.
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (REQUEST_ID_HEADER.encode(), self.request_id.encode()),
        ]

    async def _send_json(
        self, status: int, payload: translate.JsonObject, headers: dict[str, str] | None = None
    ) -> None:
        response = JSONResponse(payload, status, {REQUEST_ID_HEADER: self.request_id, **(headers or {})})
        await response(*self._asgi)


class _Incomplete(Exception):
    """The server ended a reply without `completed`, and without an error."""


def _chunk(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _prepared(data: bytes, *, model: str, account: str) -> tuple[RunBody, RunRequest]:
    def prepare() -> tuple[RunBody, RunRequest]:
        body = parse_body(data)
        return body, translate.run_request(body, model=model, account=account)

    # Megabytes of tiny messages take a second; the streams of others must not stand still for it.
    return prepare() if len(data) < _LARGE_BODY_BYTES else await asyncio.to_thread(prepare)


def _padding() -> str:
    """1 to 50 random characters, so that the size of a packet says little about the token in it."""
    alphabet = string.ascii_lowercase + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(1 + secrets.randbelow(_MAX_PADDING)))


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    too_large = ApiError(413, 3006, f"Request is too large (more than {max_bytes} bytes)")
    # Whoever says so beforehand is spared the upload.
    if int(Headers(scope=scope).get("content-length", "0")) > max_bytes:
        raise too_large
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        data += message.get("body", b"")
        if len(data) > max_bytes:
            raise too_large
        if not message.get("more_body", False):
            return bytes(data)
