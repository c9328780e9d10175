"""The endpoints of embedding models: one HTTP request, one gRPC call, one reply or one error."""

import asyncio
from typing import Any

from http_bridge.api.base import IncomingRequest, RequestParser
from http_bridge.api.embeddings.job import EmbeddingJob, EmbeddingParser, MixedParser
from http_bridge.api.reply_writer import JSON
from http_bridge.api.upstream_models import with_names
from http_bridge.endpoints.exchange import Exchange
from http_bridge.endpoints.run import RunEndpoint
from http_bridge.errors import ApiError
from http_bridge.protocol.bodies.reader import BodyReader
from http_bridge.settings.bridge import Settings
from http_bridge.upstream.client import Upstream
from tailrace.v1.inference_pb2 import Task

# A reply with more numbers is written on another thread. Writing 20,000 numbers takes about 10 ms.
_MANY_NUMBERS = 20_000


class EmbedEndpoint(RunEndpoint):
    """ASGI application that embeds texts."""

    def __init__(self, settings: Settings, bodies: BodyReader, parser: EmbeddingParser) -> None:
        """Create the endpoint. `parser`: reads the requests of the route. See RunEndpoint for the other arguments."""
        super().__init__(settings, bodies, parser)  # type: ignore[arg-type]  # only its errors are used
        self._embedding = parser

    async def _answer(self, exchange: Exchange, data: bytes, state: dict[str, Any]) -> None:
        await self._embed(exchange, exchange.incoming(data, self._settings, self._bodies), state["upstream"])

    async def _embed(self, exchange: Exchange, incoming: IncomingRequest, upstream: Upstream) -> None:
        try:
            job = await self._parse_embedding(incoming)
            request = job.request
            exchange.model = request.model
            exchange.log.account, exchange.log.stream = request.account, False
            exchange.log.model = request.model
            async with exchange.trace.embed_call(request, request_id=exchange.request_id) as call:
                response = await upstream.embed(
                    request,
                    request_id=exchange.request_id,
                    timeout_seconds=self._settings.request_timeout_seconds,
                    trace_context=call.context,
                )
            numbers = len(response.embeddings) * len(response.embeddings[0].values)
            if numbers <= _MANY_NUMBERS:
                body = job.write(response)
            else:
                body = await asyncio.to_thread(job.write, response)
            await exchange.answer(body, JSON)
        except Exception as error:
            await exchange.refuse(await with_names(exchange.explain(error), exchange.model, upstream))

    async def _parse_embedding(self, incoming: IncomingRequest) -> EmbeddingJob:
        if not incoming.is_large:
            return self._embedding.parse(incoming)
        return await asyncio.to_thread(self._embedding.parse, incoming)


class AnyTaskEndpoint(EmbedEndpoint):
    """ASGI application that runs a model of any task. The model determines the task.

    If no server has listed the model yet, the fields of the body determine the task.
    """

    def __init__(self, settings: Settings, bodies: BodyReader, parser: RequestParser, embedding: MixedParser) -> None:
        """Create the endpoint.

        Args:
            settings: See RunEndpoint.
            bodies: Reads the fields of bodies.
            parser: Reads the requests of models that generate text.
            embedding: Reads the requests of embedding models.
        """
        super().__init__(settings, bodies, embedding)
        self._parser = parser
        self._mixed = embedding

    async def _answer(self, exchange: Exchange, data: bytes, state: dict[str, Any]) -> None:
        upstream: Upstream = state["upstream"]
        # For a model that is known to generate text, the usual case, the body is parsed only once.
        if upstream.servers.task_of(exchange.model) == Task.TASK_TEXT_GENERATION:
            await RunEndpoint._answer(self, exchange, data, state)
            return
        incoming = exchange.incoming(data, self._settings, self._bodies)
        if await self._is_embedding(incoming, upstream):
            await self._embed(exchange, incoming, upstream)
        else:
            await RunEndpoint._answer(self, exchange, data, state)

    async def _is_embedding(self, incoming: IncomingRequest, upstream: Upstream) -> bool:
        try:
            if not incoming.is_large:
                model, has_fields = self._mixed.target(incoming)
            else:
                model, has_fields = await asyncio.to_thread(self._mixed.target, incoming)
        except ApiError:  # the parser of the other task reports the error
            return False
        if has_fields is None:
            return False
        task = upstream.servers.task_of(model)
        return has_fields if task is None else task == Task.TASK_TEXT_EMBEDDING
