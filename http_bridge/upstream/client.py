"""Calls the inference servers: runs and embeddings with retries, model lists, health. Does not depend on HTTP."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from http_bridge.upstream.channels import SERVICE_NAME
from http_bridge.upstream.registry import Servers
from http_bridge.upstream.resolver import Address
from http_bridge.upstream.tls import Credentials
from tailrace.v1.inference_pb2 import EmbedRequest, EmbedResponse, Model, RunRequest, RunResponse

REQUEST_ID_KEY = "x-request-id"
SESSION_KEY = "x-session-affinity"
# Pauses in seconds before the second and the third attempt: long enough for a restarted server to listen again.
RETRY_PAUSES = (0.1, 0.4)
HEALTH_TIMEOUT_SECONDS = 2.0
LIST_TIMEOUT_SECONDS = 10.0
logger = logging.getLogger(__name__)


class Upstream:
    """The bridge's client of all inference servers. Create it inside the event loop that uses it."""

    def __init__(self, targets: tuple[str, ...], credentials: Credentials) -> None:
        self._credentials = credentials
        self.servers = Servers(targets, credentials)

    async def start(self) -> None:
        """Find the servers and start polling them. If `start` is not called, gRPC resolves the names."""
        await self.servers.start()

    async def close(self) -> None:
        """Close the connections. Running calls end immediately."""
        await self.servers.close()

    @asynccontextmanager
    async def run(
        self,
        request: RunRequest,
        *,
        request_id: str,
        timeout_seconds: float,
        session: str = "",
        trace_context: Sequence[tuple[str, str]] = (),
    ) -> AsyncIterator[AsyncIterator[RunResponse]]:
        """Send the request and yield the reply's events once a server has accepted it. Leaving the context cancels the call.

        Args:
            request: The request.
            request_id: Id of the request, sent as metadata.
            timeout_seconds: Longest time from the first attempt to the last event, in seconds.
            session: The client's id of the conversation; empty if it has none. A load balancer can use it to select the
                replica with the conversation's prefix in its cache.
            trace_context: W3C trace context, sent as metadata.

        Raises:
            AioRpcError: On entering, if the request is refused; from the events, if the reply fails.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        sessions = ((SESSION_KEY, session),) if session else ()
        metadata = (*self._credentials.metadata, (REQUEST_ID_KEY, request_id), *sessions, *trace_context)
        for pause in (*RETRY_PAUSES, None):
            async with self.servers.channels.for_call(self.servers.hosting(request.model)) as channel:
                call = channel.inference.Run(request, metadata=metadata, timeout=max(0.0, deadline - loop.time()))
                try:
                    try:
                        events = await _accepted(call)
                    except grpc.aio.AioRpcError as error:
                        if pause is None or not _may_retry(error):
                            _log_refusal(error)
                            raise
                    else:
                        yield events
                        return
                finally:
                    # Without this cancellation, an abandoned call would keep its slot on the server: garbage collection
                    # does not cancel it.
                    call.cancel()
            await asyncio.sleep(pause)

    async def embed(
        self,
        request: EmbedRequest,
        *,
        request_id: str,
        timeout_seconds: float,
        trace_context: Sequence[tuple[str, str]] = (),
    ) -> EmbedResponse:
        """Send an embedding request and return its vectors. Cancelling the caller cancels the call.

        Args:
            request: The request.
            request_id: Id of the request, sent as metadata.
            timeout_seconds: Longest time from the first attempt to the reply, in seconds.
            trace_context: W3C trace context, sent as metadata.

        Raises:
            AioRpcError: The request is refused or fails.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        metadata = (*self._credentials.metadata, (REQUEST_ID_KEY, request_id), *trace_context)
        for pause in RETRY_PAUSES:
            try:
                return await self._embed(request, metadata, deadline - loop.time())
            except grpc.aio.AioRpcError as error:
                if not _may_retry(error):
                    _log_refusal(error)
                    raise
            await asyncio.sleep(pause)
        try:
            return await self._embed(request, metadata, deadline - loop.time())
        except grpc.aio.AioRpcError as error:
            _log_refusal(error)
            raise

    async def _embed(
        self, request: EmbedRequest, metadata: Sequence[tuple[str, str]], timeout_seconds: float
    ) -> EmbedResponse:
        async with self.servers.channels.for_call(self.servers.hosting(request.model)) as channel:
            call = channel.inference.Embed(request, metadata=tuple(metadata), timeout=max(0.0, timeout_seconds))
            try:
                return await call
            finally:
                call.cancel()

    async def list_models(self) -> Sequence[Model]:
        """Return every model that at least one server hosts, without duplicates.

        Raises:
            AioRpcError: No server answers.
        """
        found = [self.servers.models_of(address, LIST_TIMEOUT_SECONDS) for address in self.servers.all]
        answers = await asyncio.gather(*found, return_exceptions=True)
        lists = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not lists:
            error = next(answer for answer in answers if isinstance(answer, BaseException))
            if isinstance(error, grpc.aio.AioRpcError):
                _log_refusal(error)
            raise error
        return list({model.name: model for models in reversed(lists) for model in reversed(models)}.values())[::-1]

    def find_model(self, name: str) -> Model | None:
        """Return the model's last known description; None if no server is known to host it. Calls no server."""
        return self.servers.find_model(name)

    def find_adapter(self, name: str) -> Model | None:
        """Return the first known model with a LoRA adapter of this name; None if there is none. Calls no server."""
        return self.servers.find_adapter(name)

    def has_current_model(self, name: str) -> bool:
        """Return True if `find_model` is up to date for this model. Otherwise call `refresh_models` first."""
        return self.servers.has_current_model(name)

    async def refresh_models(self) -> None:
        """Fetch the lists of models from the servers now, within 2 s, and at most four times a second."""
        await self.servers.refresh()

    async def why_not_ready(self) -> str | None:
        """Return None if a server is serving, otherwise the reason as a sentence."""
        reasons = await asyncio.gather(*(self._why_not_ready(address) for address in self.servers.all))
        return None if None in reasons else reasons[0]

    async def _why_not_ready(self, address: Address) -> str | None:
        try:
            if not await self.servers.is_serving(address, HEALTH_TIMEOUT_SECONDS):
                return "The inference server is not serving: it is still loading a model, or stopping."
        except grpc.aio.AioRpcError as error:
            return self._health_failure(error.code())
        try:
            # Health needs no token. This call shows whether the server accepts the bridge's token.
            await self.servers.models_of(address, HEALTH_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return "The inference server refuses the bridge's token."
        return None

    def _health_failure(self, code: grpc.StatusCode) -> str:
        if code is grpc.StatusCode.UNAVAILABLE and self._credentials.has_tls:
            return "The inference server cannot be reached, or one of the two does not trust the other's certificate."
        return _HEALTH_FAILURES.get(code, f"The inference server's health check failed: {code.name}.")


_HEALTH_FAILURES = {
    grpc.StatusCode.UNAVAILABLE: "The inference server cannot be reached.",
    grpc.StatusCode.DEADLINE_EXCEEDED: f"The inference server did not answer within {HEALTH_TIMEOUT_SECONDS:g} s.",
    grpc.StatusCode.NOT_FOUND: f"The server that was reached does not offer {SERVICE_NAME}.",
    grpc.StatusCode.UNIMPLEMENTED: "The server that was reached has no health service.",
}


async def _accepted(call: "grpc.aio.UnaryStreamCall[RunRequest, RunResponse]") -> AsyncIterator[RunResponse]:
    await call.wait_for_connection()
    events = aiter(call)
    if _is_accepted(await call.initial_metadata()):
        return events
    # A refusal's status can arrive after its headers, so wait for the first event or the status.
    return _prepended(await anext(events, None), events)


async def _prepended(first: RunResponse | None, rest: AsyncIterator[RunResponse]) -> AsyncIterator[RunResponse]:
    if first is not None:
        yield first
    async for event in rest:
        yield event


def _log_refusal(error: grpc.aio.AioRpcError) -> None:
    """Log an error if the server refused the bridge's own token. Clients cannot correct the token, and receive 503."""
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        logger.error(
            "the inference server refuses this bridge: set TAILRACE_GRPC_TOKEN to a token whose digest is in the server's "
            "TAILRACE_GRPC_TOKENS_FILE"
        )


def _may_retry(error: grpc.aio.AioRpcError) -> bool:
    """Return True if another attempt is safe: no server was reached, or the server did not accept the request."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and not _is_accepted(error.initial_metadata())


def _is_accepted(metadata: grpc.aio.Metadata | None) -> bool:
    return any(key == REQUEST_ID_KEY for key, _ in metadata or ())
