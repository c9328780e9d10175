"""Opens the gRPC channels to the inference servers, and replaces them when the credentials change.

A channel to several servers balances its calls by the load that the servers report (gRFC A58 and A51). It skips servers
whose health is NOT_SERVING.
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
# The servers that may receive a call.
Group = tuple[Address, ...]

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A connection that was lost without notice is detected within 40 s if a call uses it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC also sends pings to measure the network's bandwidth, and delays keepalive pings until they are answered.
    # Therefore both kinds of pings have the same timeout.
    ("grpc.http2.ping_timeout_ms", 10_000),
    # By default, gRPC waits up to two minutes before it connects to a restarted server.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # The servers are in the same network; an HTTP proxy for outgoing traffic must not be used.
    ("grpc.enable_http_proxy", 0),
    # 2,048 vectors of 4,096 float32 numbers take 32 MiB. The limit is twice as large.
    ("grpc.max_receive_message_length", 64 * 2**20),
    # Only client.py retries calls.
    ("grpc.enable_retries", 0),
)
_BALANCING = {
    "loadBalancingConfig": [
        {
            "weighted_round_robin": {
                # Load reports inside replies arrive at the end of each reply, which is too late for long replies.
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
    """A gRPC channel with its stubs and the number of calls that use it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inference = InferenceServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.num_calls = 0
        self.close = channel.close


class Channels:
    """The open channels, one for each group of servers. Create the object inside the event loop that uses it."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._current: dict[Group, Channel] = {}
        self._replaced: set[Channel] = set()  # replaced channels with running calls

    async def close(self) -> None:
        """Close every channel. Running calls end immediately."""
        for channel in (*self._current.values(), *self._replaced):
            await channel.close()

    @asynccontextmanager
    async def for_call(self, group: Group) -> AsyncIterator[Channel]:
        """Yield the channel for one call. A replaced channel is closed after its last call."""
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
        """Retain the channels of `groups`. The others accept no new calls, and are closed after their last call."""
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
    """Return all addresses as one gRPC target. A target cannot mix IP versions: IPv4 addresses are mapped into IPv6."""
    pairs = [split_address(address.target) for address in group]
    if not any(":" in ip for ip, _ in pairs):
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in pairs)
    mapped = [ip if ipaddress.ip_address(ip).version == 6 else f"::ffff:{ip}" for ip, _ in pairs]
    return "ipv6:" + ",".join(f"[{ip}]:{port}" for ip, (_, port) in zip(mapped, pairs, strict=True))
