"""A server that is killed while it records leaves a folder with whole recordings only."""

import signal

import grpc
import pytest

from inference_server.grpc_api.recordings.folder import RecordingsFolder
from tailrace.v1 import inference_pb2_grpc
from tests.support.processes import free_address, process
from tests.support.servers import chat, write_catalog


@pytest.mark.reliability
async def test_a_kill_while_replies_are_recorded_leaves_whole_recordings(tiny_model, tmp_path):
    catalog, folder = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2")), tmp_path / "recordings"
    settings = {"catalog": str(catalog), "device": "cpu", "recordings": str(folder), "recordings_mode": "record"}
    address = free_address()
    async with process("inference_server", grpc_address=address, **settings) as server:
        await server.line_with("ready after")
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            for place in range(20):
                [_ async for _ in stub.Run(chat(f"short {place}", max_tokens=2))]
            running = stub.Run(chat("long", max_tokens=1500, temperature=0.0))
            events = aiter(running)
            await anext(events)
            server.send(signal.SIGKILL)
            with pytest.raises(grpc.aio.AioRpcError):
                [_ async for _ in events]
    recorded = RecordingsFolder(folder, "replay")
    assert sorted(each.request["chat"]["turns"][0]["content"] for each in recorded.of_method("Run")) == sorted(
        f"short {place}" for place in range(20)
    )
