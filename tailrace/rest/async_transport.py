"""Sends requests to a bridge, on asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

import httpx2

from tailrace.endpoint import Endpoint, trace_context
from tailrace.request import RunInput, invalid_value
from tailrace.rest.body import base_url, body, headers, route
from tailrace.rest.errors import connection_error, late, request_id_of, response_error
from tailrace.rest.events import EventReader
from tailrace.rest.replies import embed_body, embeddings, models
from tailrace.rest.session import CONNECT_SECONDS, limits, verification
from tailrace.types import Embeddings, Event, Model

_Result = TypeVar("_Result")


class AsyncRestTransport:
    """A pool of connections to one bridge, for one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Set up the pool. No connection is opened yet."""
        self._endpoint = endpoint
        self._base = base_url(endpoint)
        self._http = httpx2.AsyncClient(
            headers=headers(endpoint),
            verify=verification(endpoint),
            # A proxy from the environment cannot reach this machine's own loopback.
            trust_env=not endpoint.is_local,
            limits=limits(),
            timeout=None,  # asyncio.timeout below covers everything
        )

    async def stream(self, run: RunInput, timeout: float | None) -> AsyncGenerator[Event, None]:
        """Yield the events of one reply. Closing the iterator closes the connection, which cancels the request."""
        clock = asyncio.get_running_loop().time
        end = None if timeout is None else clock() + timeout
        response = await self._send("POST", route(run), end, timeout, body(run), stream=True)
        try:
            reader = EventReader(run.model, request_id_of(response))
            if response.status_code != 200:
                await self._within(response.aread(), end, timeout)
                raise response_error(response)
            yield reader.start()
            pieces = response.aiter_bytes()
            # A single timeout around the loop would also cancel the caller's code between two events.
            while (data := await self._within(anext(pieces, None), end, timeout, reader.request_id)) is not None:
                for event in reader.feed(data):
                    yield event
            reader.end()
        finally:
            await response.aclose()

    async def embed(
        self, texts: Sequence[str], model: str, dimensions: int | None, timeout: float | None
    ) -> Embeddings:
        """Return the vectors of the texts."""
        response = await self._ask("POST", "/embeddings", timeout, embed_body(texts, model, dimensions))
        return embeddings(response, model)

    async def models(self, timeout: float | None) -> list[Model]:
        """Return the models of the bridge's servers."""
        return models(await self._ask("GET", "/models", timeout))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _ask(self, method: str, path: str, timeout: float | None, document: Any = None) -> httpx2.Response:
        end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        return await self._send(method, path, end, timeout, document)

    async def _send(
        self, method: str, path: str, end: float | None, timeout: float | None, document: Any, *, stream: bool = False
    ) -> httpx2.Response:
        try:
            request = self._http.build_request(
                method,
                self._base + path,
                json=document,
                headers=trace_context(),
                timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            )
        except (ValueError, TypeError) as error:
            raise invalid_value(error) from None
        return await self._within(self._http.send(request, stream=stream), end, timeout)

    async def _within(
        self, work: Awaitable[_Result], end: float | None, timeout: float | None, request_id: str = ""
    ) -> _Result:
        """Return the result of `work`. Raises DeadlineError at `end`, in the loop's time."""
        try:
            async with asyncio.timeout_at(end):
                return await work
        except TimeoutError:
            raise late(timeout, request_id) from None
        except httpx2.HTTPError as error:
            raise connection_error(error, self._endpoint, timeout, request_id) from None
