"""The one gRPC channel to the inference server: runs, retries, health. Knows nothing of HTTP."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tailrace.v1.inference_pb2 import ListModelsRequest, Model, RunRequest, RunResponse
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

SERVICE_NAME = "tailrace.v1.InferenceService"
REQUEST_ID_KEY = "x-request-id"
SESSION_KEY = "x-session-affinity"
# Pauses before the second and the third attempt, in seconds: long enough for a restarted server's listener to be there.
RETRY_PAUSES = (0.1, 0.4)
HEALTH_TIMEOUT_SECONDS = 2.0
LIST_TIMEOUT_SECONDS = 10.0

_CHANNEL_OPTIONS = (
    # A server or a network that vanished without a word is noticed within 40 s, and only while a call waits for it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC would wait up to two minutes before it looks again for a server that is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # The server is a neighbour; a proxy for the way out must not stand between.
    ("grpc.enable_http_proxy", 0),
    # What is retried is decided below, and nowhere else.
    ("grpc.enable_retries", 0),
)


class Upstream:
    """The inference server as the bridge sees it. Make it inside the event loop that uses it."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = InferenceServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls that still run end at once."""
        await self._channel.close()

    @asynccontextmanager
    async def run(
        self, request: RunRequest, *, request_id: str, timeout_seconds: float, session: str = ""
    ) -> AsyncIterator[AsyncIterator[RunResponse]]:
        """Enter once the server has accepted the request, with the reply's events; leaving cancels what still runs.

        timeout_seconds: for everything, from the first attempt to the last event. session: the conversation that the
        request belongs to, if the client said so; who spreads calls over replicas can keep it where its prefix is cached.
        Raises AioRpcError on entering if the request is refused, and from the events if the reply fails.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        for pause in (*RETRY_PAUSES, None):
            metadata = ((REQUEST_ID_KEY, request_id), *(((SESSION_KEY, session),) if session else ()))
            call = self._stub.Run(request, metadata=metadata, timeout=max(0.0, deadline - loop.time()))
            try:
                try:
                    events = await _accepted(call)
                except grpc.aio.AioRpcError as error:
                    if pause is None or not _may_retry(error):
                        raise
                else:
                    yield events
                    return
            finally:
                # An abandoned call would keep its place in the server's batch: garbage collection is no cancel.
                call.cancel()
            await asyncio.sleep(pause)

    async def list_models(self) -> Sequence[Model]:
        """The server's catalog. Raises AioRpcError."""
        reply = await self._stub.ListModels(ListModelsRequest(), timeout=LIST_TIMEOUT_SECONDS)
        return reply.models

    async def why_not_ready(self) -> str | None:
        """None if the server says that it serves, else a sentence that says what is in the way."""
        request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        try:
            reply = await self._health.Check(request, timeout=HEALTH_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            return _HEALTH_FAILURES.get(
                error.code(), f"The inference server's health check failed: {error.code().name}."
            )
        if reply.status == health_pb2.HealthCheckResponse.SERVING:
            return None
        return "The inference server is not serving: it is still loading a model, or stopping."


_HEALTH_FAILURES = {
    grpc.StatusCode.UNAVAILABLE: "The inference server cannot be reached.",
    grpc.StatusCode.DEADLINE_EXCEEDED: f"The inference server did not answer within {HEALTH_TIMEOUT_SECONDS:g} s.",
    grpc.StatusCode.NOT_FOUND: f"The server that was reached does not offer {SERVICE_NAME}.",
    grpc.StatusCode.UNIMPLEMENTED: "The server that was reached has no health service.",
}


async def _accepted(call: "grpc.aio.UnaryStreamCall[RunRequest, RunResponse]") -> AsyncIterator[RunResponse]:
    await call.wait_for_connection()
    events = aiter(call)
    if _says_accepted(await call.initial_metadata()):
        return events
    # A refusal's status can arrive a moment after its headers: see what comes first, status or event.
    return _prepended(await anext(events, None), events)


async def _prepended(first: RunResponse | None, rest: AsyncIterator[RunResponse]) -> AsyncIterator[RunResponse]:
    if first is not None:
        yield first
    async for event in rest:
        yield event


def _may_retry(error: grpc.aio.AioRpcError) -> bool:
    """Whether another attempt can do no harm: the server was not there, or refused before it accepted."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and not _says_accepted(error.initial_metadata())


def _says_accepted(metadata: grpc.aio.Metadata | None) -> bool:
    return any(key == REQUEST_ID_KEY for key, _ in metadata or ())
