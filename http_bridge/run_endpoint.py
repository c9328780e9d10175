"""The run endpoint: one HTTP request, one gRPC call, one reply or one error.

Decides when a reply has started, and cancels the call when the client disconnects. A RequestParser reads the request and a
ReplyWriter writes the reply.
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

from http_bridge.api.base import IncomingRequest, RequestParser, RunJob
from http_bridge.api.reply_writer import CompleteReply, ErrorWriter
from http_bridge.auth.bearer import ACCOUNT_KEY
from http_bridge.error_handlers import REQUEST_ID_HEADER
from http_bridge.errors import ApiError, internal_error
from http_bridge.http_server.client_disconnect import until_disconnect
from http_bridge.observability.request_log import request_log
from http_bridge.observability.tracing.base import request_trace
from http_bridge.protocol.grpc_errors import request_timeout, rpc_api_error
from http_bridge.protocol.run_body import BodyReader
from http_bridge.settings import Settings
from http_bridge.upstream.client import SESSION_KEY, Upstream
from tailrace.v1.inference_pb2 import Completed, RunResponse

# OpenAI's clients read the request id from this header.
_SECOND_ID_HEADER = "x-request-id"
LARGE_BODY_BYTES = 100_000
_MAX_SESSION = 256
logger = logging.getLogger(__name__)


class RunEndpoint:
    """ASGI application that runs a model. Account and model come from the path, if the route has them there."""

    def __init__(self, settings: Settings, bodies: BodyReader, parser: RequestParser) -> None:
        """Create the endpoint.

        Args:
            settings: Limits in bytes and seconds, the default profile, and padding.
            bodies: Reads the fields of bodies.
            parser: Reads the requests of the route.
        """
        self._settings = settings
        self._bodies = bodies
        self._parser = parser

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._parser.errors)
        if "model" in scope["path_params"] and not exchange.model:
            raise HTTPException(404)
        try:
            async with asyncio.timeout(self._body_timeout_seconds):
                data = await _read_body(scope, receive, self._settings.max_body_bytes)
        except ClientDisconnect:
            return
        except TimeoutError:
            await exchange.refuse(request_timeout())
        except ApiError as error:
            await exchange.refuse(error)
        else:
            await until_disconnect(receive, self._answer(exchange, data, scope["state"]["upstream"]))

    @property
    def _body_timeout_seconds(self) -> float:
        return min(self._settings.body_timeout_seconds, self._settings.request_timeout_seconds)

    async def _answer(self, exchange: "Exchange", data: bytes, upstream: Upstream) -> None:
        try:
            job = await self._parse(exchange.incoming(data, self._settings, self._bodies))
            exchange.model = job.request.model
            exchange.log.account, exchange.log.stream = job.request.account, job.stream
            exchange.log.model = job.request.model
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
                events = call.observe(reply)
                if job.stream:
                    await exchange.stream(job, events)
                else:
                    await exchange.reply(job, events)
        except Exception as error:
            await exchange.refuse(exchange.explain(error))

    async def _parse(self, incoming: IncomingRequest) -> RunJob:
        # Parsing megabytes of small messages takes a second. A thread does it, so that other streams continue meanwhile.
        if len(incoming.data) < LARGE_BODY_BYTES:
            return self._parser.parse(incoming)
        return await asyncio.to_thread(self._parser.parse, incoming)


class Exchange:
    """The client's side of one request: its fields, and the ways to answer it.

    Attributes:
        request_id: UUID of the request.
        model: Model of the request; empty if it is not known yet.
        trace: Trace of the request.
        log: Log line of the request.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, errors: ErrorWriter) -> None:
        self.request_id = str(uuid.uuid4())
        self.model: str = scope["path_params"].get("model", "")
        self._account: str = scope["path_params"].get("account", "")
        self._token_account: str = scope["state"].get(ACCOUNT_KEY, "")
        self._scope = scope
        self._asgi = (scope, receive, send)
        self._send = send
        self._errors = errors
        self.trace = request_trace(scope)
        self.log = request_log(scope)
        self.log.request_id, self.log.account, self.log.model = self.request_id, self._account, self.model

    @property
    def session(self) -> str:
        """The client's id of the conversation, at most 256 characters; empty if the request has none."""
        text = Headers(scope=self._scope).get(SESSION_KEY, "")
        return text[:_MAX_SESSION] if text.isascii() and text.isprintable() else ""

    def incoming(self, data: bytes, settings: Settings, bodies: BodyReader) -> IncomingRequest:
        """Return the request for its parser."""
        return IncomingRequest(
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

    async def reply(self, job: RunJob, events: AsyncIterator[RunResponse]) -> None:
        """Collect the reply and send it as one body."""
        texts: list[str] = []
        collected = CompleteReply(Completed(), "")
        is_complete = False
        async for event in events:
            texts.append(event.delta.text)
            collected.tool_calls.extend(event.delta.tool_calls)
            collected.logprobs.extend(event.delta.logprobs)
            if event.HasField("completed"):
                collected.completed, is_complete = event.completed, True
        if not is_complete:
            raise _Incomplete
        self.log.completed = collected.completed
        collected.text = "".join(texts)
        await self.answer(200, job.writer.complete(collected), job.writer.complete_type)

    async def stream(self, job: RunJob, events: AsyncIterator[RunResponse]) -> None:
        """Send each event of the reply as it arrives. A failure becomes the last event, without the end of the stream."""
        await self._send({"type": "http.response.start", "status": 200, "headers": self._stream_headers(job)})
        try:
            completed = self.log.completed = await self._send_deltas(job, events)
            await self._send(_chunk(job.writer.finish(completed)))
        except Exception as error:
            api_error = self.explain(error)
            self.log.error_code = api_error.code
            await self._send(_chunk(job.writer.error(api_error, self.request_id)))
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error. Call it only before anything else was sent."""
        self.log.error_code = error.code
        headers = {} if error.retry_after_seconds is None else {"retry-after": str(error.retry_after_seconds)}
        payload = dict(self._errors.payload(error, self.request_id))
        await JSONResponse(payload, error.status, {**self._ids(), **headers})(*self._asgi)

    def explain(self, error: Exception) -> ApiError:
        """Return the client's error for a failure, and log the cause."""
        if isinstance(error, ApiError):
            return error
        if not isinstance(error, grpc.aio.AioRpcError):
            logger.error("request %s failed", self.request_id, exc_info=error)
            return internal_error()
        api_error = rpc_api_error(error, model=self.model)
        level = logging.WARNING if api_error.status >= 500 else logging.DEBUG
        logger.log(level, "request %s: gRPC %s: %s", self.request_id, error.code().name, error.details())
        return api_error

    async def _send_deltas(self, job: RunJob, events: AsyncIterator[RunResponse]) -> Completed:
        # This loop, and everything that it calls, runs for every token of every stream.
        writer, is_plain = job.writer, job.is_plain
        completed: Completed | None = None
        async for event in events:
            if is_plain and (text := event.delta.text):
                await self._send(_chunk(writer.text(text)))
            elif event.HasField("delta"):
                if data := writer.delta(event.delta):
                    await self._send(_chunk(data))
            elif event.HasField("started"):
                if data := writer.start(event.started):
                    await self._send(_chunk(data))
            elif event.HasField("completed"):
                completed = event.completed
        if completed is None:
            raise _Incomplete
        return completed

    def _stream_headers(self, job: RunJob) -> list[tuple[bytes, bytes]]:
        return [
            # Without a charset, which the Workers runtime does not accept.
            (b"content-type", job.writer.stream_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.encode(), value.encode()) for name, value in self._ids().items()),
        ]

    async def answer(self, status: int, body: bytes, content_type: str) -> None:
        """Send a complete answer."""
        response = Response(body, status, {"content-type": content_type, **self._ids()})
        await response(*self._asgi)

    def _ids(self) -> dict[str, str]:
        return {REQUEST_ID_HEADER: self.request_id, _SECOND_ID_HEADER: self.request_id}


class _Incomplete(Exception):
    """The server ended a reply without `completed` and without an error."""


def _chunk(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    too_large = ApiError(413, 3006, f"Request is too large (more than {max_bytes} bytes)")
    # A client that announces a longer body is refused before the upload.
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
