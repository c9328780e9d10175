"""`python -m inference_server` as a process: how it starts, refuses to start, and stops."""

import signal
import socket

import grpc
import pytest

from tailrace.v1 import inference_pb2_grpc
from tests.support.processes import free_address, process
from tests.support.servers import chat, write_catalog


@pytest.fixture
def settings(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    return {"catalog": str(catalog), "grpc_address": free_address(), "device": "cpu"}


async def test_sigterm_finishes_the_running_reply_and_exits_with_0(settings):
    async with process("inference_server", **settings) as server:
        await server.line_with("ready after")
        async with grpc.aio.insecure_channel(settings["grpc_address"]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            call = stub.Run(chat(temperature=0.0, max_tokens=1500))
            events = aiter(call)
            await anext(events)
            server.send(signal.SIGTERM)
            await server.line_with("stopping: 1 replies")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Run(chat()).read()
            last = [event async for event in events][-1]
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert last.completed.usage.completion_tokens == 1500
        assert await server.exit_code() == 0


async def test_a_second_signal_ends_the_running_reply(settings):
    async with process("inference_server", **settings) as server:
        await server.line_with("ready after")
        async with grpc.aio.insecure_channel(settings["grpc_address"]) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Run(chat(temperature=0.0))
            events = aiter(call)
            await anext(events)
            server.send(signal.SIGINT)
            await server.line_with("stopping: 1 replies")
            server.send(signal.SIGINT)
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                async for _ in events:
                    pass
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await server.exit_code(seconds=5) == 0


async def test_a_signal_while_a_model_loads_ends_the_process():
    async with process("inference_server", grpc_address=free_address()) as server:
        await server.line_with("listening on")
        server.send(signal.SIGTERM)
        assert await server.exit_code(seconds=5) == 0


async def test_a_port_in_use_is_reported_in_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with process("inference_server", grpc_address=address) as server:
            assert await server.exit_code() == 1
    assert [line for line in server.lines if address in line and "TAILRACE_GRPC_ADDRESS" in line]
    assert "Traceback" not in "".join(server.lines)


async def test_a_wrong_setting_is_reported_in_one_sentence():
    async with process("inference_server", max_running_seqs="many") as server:
        assert await server.exit_code() == 1
    (line,) = server.lines
    assert "TAILRACE_MAX_RUNNING_SEQS=many" in line


async def test_a_missing_catalog_stops_the_start_in_one_sentence(tmp_path):
    async with process("inference_server", catalog=str(tmp_path / "no.toml"), grpc_address=free_address()) as server:
        assert await server.exit_code() == 1
    assert "cannot read the catalog" in server.lines[-1]
    assert "Traceback" not in "".join(server.lines)
