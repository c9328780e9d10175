"""The addresses at which the gRPC server listens."""

import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference_server.grpc_api.server import Server
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from tailrace_shared.config_errors import ConfigurationError


def server(address):
    return Server(Settings(grpc_address=address, catalog=DEFAULT_CATALOG, device="cpu"))


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_localhost_is_served_at_both_loopback_addresses():
    listening = server("localhost:0")
    port = await listening.listen()
    try:
        for host in ("127.0.0.1", "[::1]"):
            async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        await listening.stop()


async def test_localhost_is_served_on_a_machine_without_ipv6(monkeypatch):
    monkeypatch.setattr("inference_server.grpc_api.server.local_hosts", lambda host: ("127.0.0.1",))
    listening = server("localhost:0")
    assert await listening.listen() > 0
    await listening.stop()


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
async def test_a_port_in_use_is_named_with_its_variable(address):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        listening = server(f"{address}:{port}")
        with pytest.raises(ConfigurationError, match=rf"^Port {port} \(TAILRACE_GRPC_ADDRESS=\S+\) is in use already"):
            await listening.listen()
        await listening.stop()
