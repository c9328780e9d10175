"""The channel to the inference server, and how another takes its place when the credentials change."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2_grpc

from http_bridge.credentials import Credentials
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

_OPTIONS = (
    # A server or a network that vanished without a word is noticed within 40 s, and only while a call waits for it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The same for the pings with which gRPC measures the network: while one is out, no other is sent.
    ("grpc.http2.ping_timeout_ms", 10_000),
    # gRPC would wait up to two minutes before it looks again for a server that is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # The server is a neighbour; a proxy for the way out must not stand between.
    ("grpc.enable_http_proxy", 0),
    # What is retried is decided in upstream.py, and nowhere else.
    ("grpc.enable_retries", 0),
)


class Channel:
    """One channel with its stubs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inference = InferenceServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.num_calls = 0
        self.close = channel.close


class Channels:
    """Gives each call its channel: one for all of them, until the credentials are new. Make it inside the event loop."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self._address = address
        self._credentials = credentials
        self._current = self._open()
        self._replaced: set[Channel] = set()  # calls still run on these

    async def close(self) -> None:
        """Calls that still run end at once."""
        for channel in (self._current, *self._replaced):
            await channel.close()

    @asynccontextmanager
    async def for_call(self) -> AsyncIterator[Channel]:
        """The channel of one call. One that was replaced is closed after its last."""
        if self._credentials.renew():
            self._replaced.add(self._current)
            self._current = self._open()
            await self._close_idle()
        channel = self._current
        channel.num_calls += 1
        try:
            yield channel
        finally:
            channel.num_calls -= 1
            await self._close_idle()

    def _open(self) -> Channel:
        return Channel(self._credentials.channel(self._address, _OPTIONS))

    async def _close_idle(self) -> None:
        for channel in [channel for channel in self._replaced if not channel.num_calls]:
            self._replaced.discard(channel)
            await channel.close()
