"""The client for asyncio."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar, Unpack

from tailrace.attempts import Attempts, Policy
from tailrace.collect import Collector
from tailrace.endpoint import endpoint
from tailrace.errors import TailraceError
from tailrace.options import Limits, RunOptions
from tailrace.request import RunInput, run_input
from tailrace.transport import async_transport, first_model
from tailrace.types import Embeddings, Event, Model, Reply, Started, Task, TextDelta

_Result = TypeVar("_Result")


class AsyncStream:
    """The events of one reply while it is generated: an iterator, and a context manager that cancels at its end.

    The request is sent with the first event, or at the beginning of an `async with` block. Closing the stream early, or
    cancelling the task that reads it, cancels the request, so that the server frees the slot immediately.
    """

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events
        self._first: Event | None = None
        self._collector = Collector()
        self._request_id = ""

    @property
    def request_id(self) -> str:
        """Id of the request in the logs of the services; empty until the server has accepted the request."""
        return self._request_id

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Return the next event. Raises TailraceError."""
        event = await anext(self._events) if self._first is None else self._first
        self._first = None
        if isinstance(event, Started):
            self._request_id = event.request_id
        self._collector.add(event)
        return event

    async def texts(self) -> AsyncIterator[str]:
        """Yield the text of the reply piece by piece, without its other events."""
        async for event in self:
            if isinstance(event, TextDelta) and event.text:
                yield event.text

    async def reply(self) -> Reply:
        """Read the rest of the stream, and return the whole reply, including the events that were read before."""
        async for _ in self:
            pass
        return self._collector.reply()

    async def close(self) -> None:
        """Cancel the request if the reply is not complete."""
        await self._events.aclose()

    async def __aenter__(self) -> "AsyncStream":
        """Send the request and wait until the server accepts it. Raises TailraceError if the server refuses."""
        if self._first is None and not self._request_id:
            self._first = await anext(self._events)
            if isinstance(self._first, Started):
                self._request_id = self._first.request_id
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


class AsyncClient:
    """A client of one bridge (http://, https://) or inference server (grpc://, grpcs://), for one asyncio event loop.

    Connections are kept open and reused. Any number of tasks may share a client. Refused and failed requests are tried
    again where that is safe: never after the first event of a stream.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        account: str | None = None,
        model: str | None = None,
        timeout: float | None = 600.0,
        total_timeout: float | None = None,
        retries: int = 2,
        ca_file: "str | os.PathLike[str] | None" = None,
        client_cert: "tuple[str | os.PathLike[str], str | os.PathLike[str]] | None" = None,
    ) -> None:
        """Check the arguments without opening a connection. They are those of Client.

        Raises:
            ValueError: The address, the token or a limit is not valid, or a file does not exist.
        """
        self._policy = Policy(timeout, total_timeout, retries)
        self._endpoint = endpoint(url, token, account, ca_file, client_cert)
        self._model = model
        self._found: dict[Task, str] = {}
        self._is_closed = False
        self._transport = async_transport(self._endpoint)

    @property
    def url(self) -> str:
        """The address of the service."""
        return self._endpoint.url

    async def run(self, prompt: str | None = None, *, model: str | None = None, **options: Unpack[RunOptions]) -> Reply:
        """Return a complete reply.

        Args:
            prompt: The user's message, or with `raw` the text to continue. None: `messages` is the conversation.
            model: Name of the model; None: the client's model, or if it has none, the first that generates text.
            options: Everything else that a request may set: see RunOptions.

        Raises:
            TailraceError: The request is refused, or failed in its last attempt.
        """

        attempts = Attempts(self._policy.with_limits(options))

        async def attempt() -> Reply:
            collector = Collector()
            run = await self._input(prompt, model, options, attempts.timeout())
            async with aclosing(self._transport.stream(run, attempts.timeout())) as events:
                async for event in events:
                    collector.add(event)
            return collector.reply()

        # Nothing reaches the caller before the reply is complete, so a broken reply may be tried again too.
        return await self._try(attempts, attempt)

    def stream(
        self, prompt: str | None = None, *, model: str | None = None, **options: Unpack[RunOptions]
    ) -> AsyncStream:
        """Return the events of a reply while it is generated. The arguments are those of `run`; do not await this call."""
        return AsyncStream(self._events(prompt, model, options))

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        **limits: Unpack[Limits],
    ) -> Embeddings:
        """Return one vector for each text.

        Args:
            texts: The texts, 1 to 2,048; a single text is a list of one.
            model: Name of an embedding model; None: the server's first one.
            dimensions: Length of the vectors; None: the model's.
            limits: Deadlines and retries of this call: see Limits.

        Raises:
            TailraceError: The request is refused, or failed in its last attempt.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)

        attempts = Attempts(self._policy.with_limits(limits))

        async def attempt() -> Embeddings:
            name = model or await self._first("text-embeddings", attempts.timeout())
            return await self._transport.embed(listed, name, dimensions, attempts.timeout())

        return await self._try(attempts, attempt)

    async def models(self, **limits: Unpack[Limits]) -> list[Model]:
        """Return the server's models in the order of its catalog. Raises TailraceError."""
        attempts = Attempts(self._policy.with_limits(limits))
        return await self._try(attempts, lambda: self._transport.models(attempts.timeout()))

    async def close(self) -> None:
        """Close the connections. Replies that are not complete are cancelled. Later calls raise RuntimeError."""
        self._is_closed = True
        await self._transport.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _events(self, prompt: str | None, model: str | None, options: RunOptions) -> AsyncGenerator[Event, None]:
        attempts = Attempts(self._policy.with_limits(options))
        while True:
            self._check_open()
            has_begun = False
            try:
                run = await self._input(prompt, model, options, attempts.timeout())
                async with aclosing(self._transport.stream(run, attempts.timeout())) as events:
                    async for event in events:
                        has_begun = True
                        yield event
                return
            except TailraceError as error:
                if has_begun:
                    raise
                pause = attempts.pause_after(error)
            await asyncio.sleep(pause)

    async def _try(self, attempts: Attempts, call: Callable[[], Awaitable[_Result]]) -> _Result:
        while True:
            self._check_open()
            try:
                return await call()
            except TailraceError as error:
                pause = attempts.pause_after(error)
            await asyncio.sleep(pause)

    async def _input(
        self, prompt: str | None, model: str | None, options: RunOptions, timeout: float | None
    ) -> RunInput:
        return run_input(prompt, model or self._model or await self._first("text-generation", timeout), options)

    async def _first(self, task: Task, timeout: float | None) -> str:
        if task not in self._found:
            self._found[task] = first_model(await self._transport.models(timeout), task)
        return self._found[task]

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this client is closed")
