"""Several inference servers: behind one name, behind several addresses, with different models, joining and leaving."""

import asyncio
import socket
from contextlib import AsyncExitStack

import grpc
import pytest

from http_bridge.settings.bridge import Settings
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.config_errors import ConfigurationError
from tests.http_bridge.conftest import MODEL, Backend, new_york

OTHER = "@cf/other/model"
NAME = "servers.internal"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr("http_bridge.upstream.registry.POLL_SECONDS", 0.02)


@pytest.fixture
async def start_backend():
    async with AsyncExitStack() as stack:

        async def start(address="127.0.0.1:0", models=(MODEL,)):
            backend = Backend(address=address)
            backend.servicer.models = [pb.Model(name=name) for name in models]
            await backend.server.start()
            await backend.set_serving(True)
            stack.push_async_callback(backend.server.stop, None)
            return backend

        yield start


@pytest.fixture
async def pair(start_backend):
    return [await start_backend(), await start_backend()]


@pytest.fixture
async def pair_bridge(pair, start_bridge):
    bridge = await start_bridge(grpc_address=",".join(backend.address for backend in pair))
    await until(lambda: num_serving(bridge) == 2)
    return bridge


async def ask(bridge, times, model=MODEL):
    url = f"/client/v4/accounts/acc/ai/run/{model}"
    return [(await bridge.ask(url=url)).status_code for _ in range(times)]


def calls(*backends):
    return [len(backend.servicer.requests) for backend in backends]


def num_serving(bridge):
    """Return the number of servers that were serving at the bridge's last health check."""
    return bridge.metrics.registry.get_sample_value("tailrace_upstream_servers", {"state": "serving"})


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_servers_without_load_reports_get_calls_in_turn(pair, pair_bridge):
    assert await ask(pair_bridge, 10) == [200] * 10
    assert min(calls(*pair)) >= 4  # the first may arrive before both are connected


async def test_a_server_that_is_not_serving_gets_no_calls(pair, pair_bridge):
    await ask(pair_bridge, 2)
    await pair[0].set_serving(False)
    await until(lambda: num_serving(pair_bridge) == 1)
    before, after = calls(*pair), None
    async with asyncio.timeout(10):
        while after != [before[0], before[1] + 6]:  # until gRPC's own health watch has received it too
            before = calls(*pair)
            await ask(pair_bridge, 6)
            after = calls(*pair)


async def test_a_stream_continues_when_its_server_stops_serving(pair, pair_bridge):
    left = asyncio.Event()

    async def slowly(reply):
        await reply.accept()
        await reply.start()
        await reply.say("New")
        await left.wait()
        await reply.say(" York")
        await reply.complete()

    for backend in pair:
        backend.servicer.script = slowly
    running = asyncio.create_task(pair_bridge.ask({"prompt": "hi", "stream": True}))
    await until(lambda: sum(calls(*pair)) == 1)
    await pair[calls(*pair).index(1)].set_serving(False)
    await until(lambda: num_serving(pair_bridge) == 1)
    left.set()
    assert (await running).text.endswith("data: [DONE]\n\n")


async def test_run_goes_to_the_server_that_hosts_its_model(start_backend, start_bridge):
    first, second = await start_backend(models=[MODEL]), await start_backend(models=[OTHER])
    bridge = await start_bridge(grpc_address=f"{first.address},{second.address}")
    await until(lambda: num_serving(bridge) == 2)
    await ask(bridge, 3)
    await ask(bridge, 2, OTHER)
    assert [request.model for request in first.servicer.requests] == [MODEL] * 3
    assert [request.model for request in second.servicer.requests] == [OTHER] * 2


async def test_models_of_all_servers_are_listed_once_each(start_backend, start_bridge):
    first, second = await start_backend(models=[MODEL, OTHER]), await start_backend(models=[OTHER, "@cf/third/one"])
    bridge = await start_bridge(grpc_address=f"{first.address},{second.address}")
    listed = (await bridge.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [MODEL, OTHER, "@cf/third/one"]


async def test_models_are_listed_while_one_of_two_servers_is_gone(pair, pair_bridge):
    await pair[0].server.stop(None)
    assert (await pair_bridge.client.get("/v1/models")).status_code == 200


async def test_bridge_is_ready_while_one_of_two_servers_serves(pair, pair_bridge):
    await pair[0].set_serving(False)
    assert (await pair_bridge.client.get("/readyz")).status_code == 200
    await pair[1].set_serving(False)
    assert (await pair_bridge.client.get("/readyz")).status_code == 503


async def test_only_servers_behind_the_name_get_work(start_backend, start_bridge, monkeypatch):
    first = await start_backend()
    second = await start_backend(f"127.0.0.2:{first.port}")
    there = ["127.0.0.1"]

    async def look_up(loop, host, port, **options):
        assert host == NAME
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in there]

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", look_up)
    bridge = await start_bridge(grpc_address=f"{NAME}:{first.port}")
    await ask(bridge, 2)
    assert calls(first, second) == [2, 0]
    there.append("127.0.0.2")
    await until(lambda: num_serving(bridge) == 2)
    await ask(bridge, 4)
    assert sum(calls(first, second)) == 6 and calls(first, second)[1] > 0
    there.remove("127.0.0.1")
    await until(lambda: num_serving(bridge) == 1)
    before = calls(first, second)
    await ask(bridge, 2)
    assert calls(first, second) == [before[0], before[1] + 2]


async def test_a_refusal_of_a_stopping_server_is_retried_on_another(pair, pair_bridge):
    async def stop(reply):
        await reply.refuse(grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")

    pair[0].servicer.script, pair[1].servicer.script = stop, new_york
    assert await ask(pair_bridge, 4) == [200] * 4


def test_several_addresses_with_tls_need_the_name_of_their_certificate(monkeypatch, tmp_path):
    monkeypatch.setenv("TAILRACE_GRPC_ADDRESS", "one:50051,two:50051")
    monkeypatch.setenv("TAILRACE_GRPC_TLS_CA", str(tmp_path))
    with pytest.raises(ConfigurationError, match="need TAILRACE_GRPC_TLS_SERVER_NAME"):
        Settings.from_environment()
