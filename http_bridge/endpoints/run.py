"""The run endpoint: one HTTP request, one gRPC call for each choice, one reply or one error.

Cancels the calls when the client disconnects. A RequestParser reads the request and a ReplyWriter writes the reply.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from http_bridge.api.base import DirectJob, IncomingRequest, OutdatedModels, RequestParser, RunJob
from http_bridge.api.collected import failing
from http_bridge.api.reply_writer import JSON
from http_bridge.api.upstream_models import with_names
from http_bridge.endpoints.exchange import Exchange
from http_bridge.errors import ApiError
from http_bridge.http_server.client_disconnect import until_disconnect
from http_bridge.http_server.request_body import read_body
from http_bridge.protocol.bodies.reader import BodyReader
from http_bridge.protocol.grpc_errors import request_timeout
from http_bridge.settings.bridge import Settings
from http_bridge.upstream.client import Upstream
from tailrace.v1.inference_pb2 import RunResponse


class RunEndpoint:
    """ASGI application that runs a model. If the route's path names the account or the model, these are used."""

    def __init__(self, settings: Settings, bodies: BodyReader, parser: RequestParser) -> None:
        """Create the endpoint.

        Args:
            settings: Limits in bytes and seconds, the default profile, padding, and fixed seeds.
            bodies: Reads the fields of bodies.
            parser: Reads the requests of the route.
        """
        self._settings = settings
        self._body_timeout_seconds = min(settings.body_timeout_seconds, settings.request_timeout_seconds)
        self._bodies = bodies
        self._parser = parser

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._parser.errors)
        if "model" in scope["path_params"] and not exchange.model:
            raise HTTPException(404)
        try:
            async with asyncio.timeout(self._body_timeout_seconds):
                data = await read_body(scope, receive, self._settings.max_body_bytes)
        except ClientDisconnect:
            return
        except TimeoutError:
            await exchange.refuse(request_timeout())
        except ApiError as error:
            await exchange.refuse(error)
        else:
            await until_disconnect(receive, self._answer(exchange, data, scope["state"]))

    async def _answer(self, exchange: Exchange, data: bytes, state: dict[str, Any]) -> None:
        upstream: Upstream = state["upstream"]
        job: RunJob | DirectJob | None = None
        try:
            incoming = exchange.incoming(data, self._settings, self._bodies)
            job = await self._parse(incoming, upstream)
            if isinstance(job, DirectJob):
                exchange.model = exchange.log.model = job.model
                exchange.log.account, exchange.log.stream = job.account, False
                await exchange.answer(await job.answer(state), JSON)
                return
            exchange.model = job.request.model
            exchange.log.account, exchange.log.stream = job.request.account, job.stream
            exchange.log.model, exchange.log.tags = job.request.model, job.tags
            async with AsyncExitStack() as calls:
                runs = [self._run(exchange, upstream, job, index) for index in range(len(job.requests))]
                replies = [await calls.enter_async_context(run) for run in runs]
                if job.stream:
                    silence = self._settings.stream_comment_seconds if incoming.profile.has_comments else 0
                    await exchange.stream(job, replies, silence)
                else:
                    await exchange.reply(job, replies)
        except Exception as error:
            refusal = await with_names(exchange.explain(error), exchange.model, upstream)
            if isinstance(job, RunJob) and job.stream and job.writer.streams_refusal(refusal):
                await exchange.stream(job, [failing(refusal)], 0)
            else:
                await exchange.refuse(refusal)

    @asynccontextmanager
    async def _run(
        self, exchange: Exchange, upstream: Upstream, job: RunJob, index: int
    ) -> AsyncIterator[AsyncIterator[RunResponse]]:
        """Call the inference server for one reply, and yield its events."""
        request = job.requests[index]
        request_id = f"{exchange.request_id}-{index}" if index else exchange.request_id
        call = exchange.trace.call(request, request_id=request_id, is_stream=job.stream)
        async with (
            call,
            upstream.run(
                request,
                request_id=request_id,
                timeout_seconds=self._settings.request_timeout_seconds,
                session=exchange.session,
                trace_context=call.context,
            ) as reply,
        ):
            yield call.observe(reply)

    async def _parse(self, incoming: IncomingRequest, upstream: Upstream) -> RunJob | DirectJob:
        try:
            return await self._parse_once(incoming)
        except OutdatedModels:
            await upstream.refresh_models()
            return await self._parse_once(dataclasses.replace(incoming, models_are_current=True))

    async def _parse_once(self, incoming: IncomingRequest) -> RunJob | DirectJob:
        # Parsing megabytes of small messages takes a second. Another thread does it, so that other streams continue.
        if not incoming.is_large:
            return self._parser.parse(incoming)
        return await asyncio.to_thread(self._parser.parse, incoming)
