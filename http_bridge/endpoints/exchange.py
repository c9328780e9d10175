"""Represents the client's side of one request: its fields, and the methods that answer it.

An error before the start of a reply has an HTTP status. A later error is the last event of the stream.
"""

import logging
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType

import grpc
from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from http_bridge.api.base import Choices, IncomingRequest, RunJob
from http_bridge.api.collected import Incomplete, all_collected, collected
from http_bridge.api.reply_writer import ErrorWriter
from http_bridge.auth.bearer import ACCOUNT_KEY
from http_bridge.error_handlers import REQUEST_ID_HEADER
from http_bridge.errors import ApiError, internal_error
from http_bridge.http_server.stream_comments import stream_comments
from http_bridge.observability.request_log import request_log
from http_bridge.observability.tracing.base import request_trace
from http_bridge.protocol.bodies.reader import BodyReader
from http_bridge.protocol.grpc_errors import rpc_api_error
from http_bridge.settings.bridge import Settings
from http_bridge.upstream.client import SESSION_KEY
from http_bridge.upstream.merged import merged
from tailrace.v1.inference_pb2 import Completed, RunResponse

# OpenAI's clients read the request id from this header.
_SECOND_ID_HEADER = "x-request-id"
_MAX_SESSION = 256
logger = logging.getLogger(__name__)


class Exchange:
    """The client's side of one request: its fields, and the methods that answer it.

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
        self.log.error_code = None  # a step of a gateway may have failed before
        self.log.request_id, self.log.account, self.log.model = self.request_id, self._account, self.model

    @property
    def session(self) -> str:
        """The client's id of the conversation, at most 256 characters; empty if the request has none."""
        text = Headers(scope=self._scope).get(SESSION_KEY, "")
        return text[:_MAX_SESSION] if text.isascii() and text.isprintable() else ""

    def incoming(self, data: bytes, settings: Settings, bodies: BodyReader) -> IncomingRequest:
        """Return the request as request parsers accept it. `data`: its body."""
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
            has_fixed_seeds=settings.has_fixed_seeds,
            bodies=bodies,
            models=self._scope["state"]["upstream"],
        )

    async def reply(self, job: RunJob, replies: Sequence[AsyncIterator[RunResponse]]) -> None:
        """Collect the reply, or all choices, and send one body."""
        if job.choices is None:
            reply = await collected(replies[0])
            self.log.completed = reply.completed
            body = job.writer.complete(reply)
        else:
            choices = await all_collected(replies)
            self.log.completed = job.choices.total([reply.completed for reply in choices])
            body = job.choices.complete(choices)
        await self.answer(body, job.writer.complete_type, job.notices)

    async def answer(self, body: bytes, content_type: str, notices: Mapping[str, str] = MappingProxyType({})) -> None:
        """Send a successful reply as one body. `notices`: additional headers."""
        await Response(body, 200, {"content-type": content_type, **self._ids(), **notices})(*self._asgi)

    async def stream(self, job: RunJob, replies: Sequence[AsyncIterator[RunResponse]], comment_seconds: float) -> None:
        """Send each event of the reply as it arrives. After a failure, the last event is an error, not the end marker.

        Args:
            job: The request, and the writer of the reply.
            replies: The events of each reply.
            comment_seconds: Time of silence before each comment, in seconds; 0: no comments.
        """
        await self._send({"type": "http.response.start", "status": 200, "headers": self._stream_headers(job)})
        with stream_comments(self._send, comment_seconds) as self._send:
            try:
                if job.choices is None:
                    completed = self.log.completed = await self._send_deltas(job, replies[0])
                    await self._send(_chunk(job.writer.finish(completed)))
                else:
                    completed = self.log.completed = await self._send_choices(job.choices, replies)
                    await self._send(_chunk(job.choices.finish(completed)))
            except Exception as error:
                api_error = self.explain(error)
                self.log.error_code = api_error.code
                await self._send(_chunk(job.writer.error(api_error, self.request_id)))
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error. Call it only before anything else was sent."""
        self.log.error_code = error.code
        payload = dict(self._errors.payload(error, self.request_id))
        await JSONResponse(payload, self._errors.status(error), {**self._ids(), **error.headers})(*self._asgi)

    def explain(self, error: Exception) -> ApiError:
        """Return the error that the client receives for a failure. Logs the cause, except that of an ApiError."""
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
        writer, is_plain = job.writer, False
        completed: Completed | None = None
        async for event in events:
            delta = event.delta
            if is_plain and (text := delta.text):
                await self._send(_chunk(writer.text(text)))
            elif event.HasField("delta"):
                if data := writer.delta(delta):
                    await self._send(_chunk(data))
                # Thoughts precede all text. After a delta with text alone, no delta of this job has anything else.
                is_plain = job.is_plain and bool(delta.text) and not delta.reasoning
            elif event.HasField("started"):
                if data := writer.start(event.started):
                    await self._send(_chunk(data))
            elif event.HasField("completed"):
                completed = event.completed
        if completed is None:
            raise Incomplete
        return completed

    async def _send_choices(self, choices: Choices, replies: Sequence[AsyncIterator[RunResponse]]) -> Completed:
        completed: dict[int, Completed] = {}
        async with aclosing(merged(replies)) as events:
            async for index, event in events:
                if event.HasField("completed"):
                    completed[index] = event.completed
                if data := choices.event(index, event):
                    await self._send(_chunk(data))
        if len(completed) < len(replies):
            raise Incomplete
        return choices.total([completed[index] for index in range(len(replies))])

    def _stream_headers(self, job: RunJob) -> list[tuple[bytes, bytes]]:
        return [
            # Without a charset, which the Workers runtime does not accept.
            (b"content-type", job.writer.stream_type.encode()),
            # Compressing proxies would otherwise buffer the events.
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
            *((name.encode(), value.encode()) for name, value in {**self._ids(), **job.notices}.items()),
        ]

    def _ids(self) -> dict[str, str]:
        return {REQUEST_ID_HEADER: self.request_id, _SECOND_ID_HEADER: self.request_id}


def _chunk(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}
