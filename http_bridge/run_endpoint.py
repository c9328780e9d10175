"""The run endpoint: one HTTP request, one gRPC call, one reply or one error. The way of a request, top to bottom.

Knows when a reply counts as started and that a client who leaves cancels its call; how requests are read is known to the
surfaces, how replies are written to the forms.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator

import grpc
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from http_bridge.api.base import Call, Job, Surface
from http_bridge.api.reply_writer import ErrorForm, Whole
from http_bridge.auth.bearer import ACCOUNT_KEY
from http_bridge.errors import ApiError, internal_error
from http_bridge.http_server.client_disconnect import until_disconnect
from http_bridge.observability.request_log import record_of
from http_bridge.observability.tracing.base import trace_of
from http_bridge.protocol import to_grpc as translate
from http_bridge.protocol.run_body import BodyReader
from http_bridge.settings import Settings
from http_bridge.upstream.client import SESSION_KEY, Upstream
from tailrace.v1.inference_pb2 import Completed, RunResponse

REQUEST_ID_HEADER = "cf-ai-req-id"
# OpenAI's clients look for it under this name.
_SECOND_ID_HEADER = "x-request-id"
_LARGE_BODY_BYTES = 100_000
_MAX_SESSION = 256
_logger = logging.getLogger(__name__)


class RunEndpoint:
    """ASGI application of the routes of one surface; account and model, where they have them, stand in the scope."""

    def __init__(self, settings: Settings, bodies: BodyReader, surface: Surface) -> None:
        self._settings = settings
        self._bodies = bodies
        self._surface = surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send, self._surface.errors)
        if "model" in scope["path_params"] and not exchange.model:
            raise HTTPException(404)
        try:
            async with asyncio.timeout(self._body_timeout_seconds):
                data = await _read_body(scope, receive, self._settings.max_body_bytes)
        except ClientDisconnect:
            return
        except TimeoutError:
            await exchange.refuse(translate.request_timeout())
        except ApiError as error:
            await exchange.refuse(error)
        else:
            await until_disconnect(receive, self._answer(exchange, data, scope["state"]["upstream"]))

    @property
    def _body_timeout_seconds(self) -> float:
        return min(self._settings.body_timeout_seconds, self._settings.request_timeout_seconds)

    async def _answer(self, exchange: "_Exchange", data: bytes, upstream: Upstream) -> None:
        try:
            job = await self._read(exchange.call(data, self._settings, self._bodies))
            exchange.model = job.request.model
            exchange.record.account, exchange.record.stream = job.request.account, job.stream
            exchange.record.model = job.request.model
            timeout_seconds = self._settings.request_timeout_seconds
            call = exchange.trace.call(job.request, request_id=exchange.request_id, is_stream=job.stream)
            async with (
                call,
                upstream.run(
                    job.request,
                    request_id=exchange.request_id,
                    timeout_seconds=timeout_seconds,
                    session=exchange.session,
                    trace_context=call.context,
                ) as reply,
            ):
                events = call.watched(reply)
                if job.stream:
                    await exchange.stream(job, events)
                else:
                    await exchange.reply(job, events)
        except Exception as error:
            await exchange.refuse(exchange.explain(error))

    async def _read(self, call: Call) -> Job:
        # Megabytes of tiny messages take a second; the streams of others must not stand still for it.
        if len(call.data) < _LARGE_BODY_BYTES:
            return self._surface.read(call)
        return await asyncio.to_thread(self._surface.read, call)


class _Exchange:
    """One request's side towards the client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, errors: ErrorForm) -> None:
        self.request_id = str(uuid.uuid4())
        self.model: str = scope["path_params"].get("model", "")
        self._account: str = scope["path_params"].get("account", "")
        self._token_account: str = scope["state"].get(ACCOUNT_KEY, "")
        self._scope = scope
        self._asgi = (scope, receive, send)
        self._send = send
        self._errors = errors
        self.trace = trace_of(scope)
        self.record = record_of(scope)
        self.record.request_id, self.record.account, self.record.model = self.request_id, self._account, self.model

    @property
    def session(self) -> str:
        """The conversation that the client says this request belongs to; empty if it does not."""
        text = Headers(scope=self._scope).get(SESSION_KEY, "")
        return text[:_MAX_SESSION] if text.isascii() and text.isprintable() else ""

    def call(self, data: bytes, settings: Settings, bodies: BodyReader) -> Call:
        return Call(
            request_id=self.request_id,
            account=self._account or self._token_account,
            is_at_account=bool(self._account),
            model=self.model,
            headers=Headers(scope=self._scope),
            query=QueryParams(self._scope["query_string"]),
            data=data,
            max_bytes=settings.max_body_bytes,
            has_padding=settings.stream_padding,
            default_profile=settings.profile,
            bodies=bodies,
        )

    async def reply(self, job: Job, events: AsyncIterator[RunResponse]) -> None:
        """Send the whole reply as one body."""
        texts: list[str] = []
        whole = Whole(Completed(), "")
        is_complete = False
        async for event in events:
            texts.append(event.delta.text)
            whole.tool_calls.extend(event.delta.tool_calls)
            whole.logprobs.extend(event.delta.logprobs)
            if event.HasField("completed"):
                whole.completed, is_complete = event.completed, True
        if not is_complete:
            raise _Incomplete
        self.record.completed = whole.completed
        whole.text = "".join(texts)
        await self._answer(200, job.form.whole(whole), job.form.whole_type)

    async def stream(self, job: Job, events: AsyncIterator[RunResponse]) -> None:
        """Send each event of the reply when it exists; a failure becomes the last event, and no end follows it."""
        await self._send({"type": "http.response.start", "status": 200, "headers": self._stream_headers(job)})
        try:
            completed = self.record.completed = await self._send_deltas(job, events)
            await self._send(_chunk(job.form.end(completed)))
        except Exception as error:
            api_error = self.explain(error)
            self.record.error_code = api_error.code
            await self._send(_chunk(job.form.failure(api_error, self.request_id)))
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error; only before anything else was sent."""
        self.record.error_code = error.code
        headers = {} if error.retry_after_seconds is None else {"retry-after": str(error.retry_after_seconds)}
        payload = dict(self._errors.payload(error, self.request_id))
        await JSONResponse(payload, error.status, {**self._ids(), **headers})(*self._asgi)

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

    async def _send_deltas(self, job: Job, events: AsyncIterator[RunResponse]) -> Completed:
        # Here, and in what it calls, each microsecond is paid for every token of every stream.
        form, is_plain = job.form, job.is_plain
        completed: Completed | None = None
        async for event in events:
            if is_plain and (text := event.delta.text):
                await self._send(_chunk(form.text(text)))
            elif event.HasField("delta"):
                if data := form.delta(event.delta):
                    await self._send(_chunk(data))
            elif event.HasField("started"):
                if data := form.opening(event.started):
                    await self._send(_chunk(data))
            elif event.HasField("completed"):
                completed = event.completed
        if completed is None:
            raise _Incomplete
        return completed

    def _stream_headers(self, job: Job) -> list[tuple[bytes, bytes]]:
        return [
            # Bare, like that of the JSON replies: a charset behind it breaks the Workers runtime.
            (b"content-type", job.form.stream_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.encode(), value.encode()) for name, value in self._ids().items()),
        ]

    async def _answer(self, status: int, body: bytes, content_type: str) -> None:
        response = Response(body, status, {"content-type": content_type, **self._ids()})
        await response(*self._asgi)

    def _ids(self) -> dict[str, str]:
        return {REQUEST_ID_HEADER: self.request_id, _SECOND_ID_HEADER: self.request_id}


class _Incomplete(Exception):
    """The server ended a reply without `completed`, and without an error."""


def _chunk(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


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
