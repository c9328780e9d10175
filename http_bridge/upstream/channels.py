"""The channels to the inference servers, and how others take their place when the credentials change.

A channel to several servers balances by the load that they report, with what gRPC brings along (gRFC A58 and A51), and
leaves out those whose health says NOT_SERVING before they refuse anybody.
"""

import ipaddress
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2_grpc

from http_bridge.upstream.resolver import Address
from http_bridge.upstream.tls import Credentials
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub
from tailrace_shared.addresses import split_address

SERVICE_NAME = "tailrace.v1.InferenceService"
# Servers that a call may go to.
Group = tuple[Address, ...]

_OPTIONS: tuple[tuple[str, int | str], ...] = (
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
_BALANCING = {
    "loadBalancingConfig": [
        {
            "weighted_round_robin": {
                # A report with each reply would come at its end, and that of a long one much too late.
                "enableOobLoadReport": True,
                "oobReportingPeriod": "0.5s",
                "weightUpdatePeriod": "0.5s",
                "blackoutPeriod": "0s",
            }
        }
    ],
    "healthCheckConfig": {"serviceName": SERVICE_NAME},
}


class Channel:
    """One channel with its stubs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inference = InferenceServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.num_calls = 0
        self.close = channel.close


class Channels:
    """Gives each call its channel: one for each group of servers, until the credentials are new.

    Make it inside the event loop that uses it.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._current: dict[Group, Channel] = {}
        self._replaced: set[Channel] = set()  # calls still run on these

    async def close(self) -> None:
        """Calls that still run end at once."""
        for channel in (*self._current.values(), *self._replaced):
            await channel.close()

    @asynccontextmanager
    async def for_call(self, group: Group) -> AsyncIterator[Channel]:
        """The channel of one call. One that was replaced is closed after its last."""
        if self._credentials.reload_if_changed():
            await self.retain(())
        channel = self._current.get(group)
        if channel is None:
            channel = self._current[group] = Channel(self._open(group))
        channel.num_calls += 1
        try:
            yield channel
        finally:
            channel.num_calls -= 1
            if channel in self._replaced:
                await self._close_idle()

    async def retain(self, groups: Collection[Group]) -> None:
        """Take no more calls for other groups than these."""
        for group in [group for group in self._current if group not in groups]:
            self._replaced.add(self._current.pop(group))
        await self._close_idle()

    def _open(self, group: Group) -> grpc.aio.Channel:
        name = group[0].name
        if len(group) == 1:
            target, options = group[0].target, _OPTIONS
        else:
            target, options = _target(group), (*_OPTIONS, ("grpc.service_config", json.dumps(_BALANCING)))
            name = name or split_address(group[0].target)[0]
        return self._credentials.channel(target, options, name)

    async def _close_idle(self) -> None:
        for channel in [channel for channel in self._replaced if not channel.num_calls]:
            self._replaced.discard(channel)
            await channel.close()


def _target(group: Group) -> str:
    """All of them in gRPC's notation, which has one for each of IP's versions: version 6 can write those of version 4."""
    pairs = [split_address(address.target) for address in group]
    if not any(":" in ip for ip, _ in pairs):
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in pairs)
    mapped = [ip if ipaddress.ip_address(ip).version == 6 else f"::ffff:{ip}" for ip, _ in pairs]
    return "ipv6:" + ",".join(f"[{ip}]:{port}" for ip, (_, port) in zip(mapped, pairs, strict=True))
