"""A server process that is killed at five points of its model's download, and then started again."""

import asyncio
import re
import signal
from pathlib import Path

import grpc
import pytest

from tailrace.v1 import inference_pb2_grpc
from tests.support.hub.server import running_hub
from tests.support.processes import process
from tests.support.servers import chat

pytestmark = pytest.mark.exact

NAME, WEIGHTS = "owner/killed", "model.safetensors"
SHARES = (None, 0.01, 0.4, 0.8, 1.0)  # downloaded shares of the weights; None: only the configuration was sent


async def test_a_killed_server_continues_its_download_and_then_serves_the_whole_model(
    tiny_model, tmp_path, monkeypatch
):
    with running_hub() as hub:
        source = tiny_model("llama-2")
        hub.add(NAME, source)
        size = (source / WEIGHTS).stat().st_size
        hub.faults.bytes_per_second = size / 2
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        settings = {
            "models": NAME,
            "cache_dir": str(tmp_path / "tailrace"),
            "grpc_address": "127.0.0.1:0",
            "device": "cpu",
        }
        for share in SHARES:
            async with process("inference_server", **settings) as victim:
                await victim.line_with("listening on")
                while not (hub.requests if share is None else hub.sent_bytes.get(WEIGHTS, 0) >= share * size):
                    await asyncio.sleep(0.01)
                victim.send(signal.SIGKILL)
                await victim.exit_code()
                assert not any("ready after" in line for line in victim.lines)
        hub.faults.bytes_per_second = None
        async with process("inference_server", **settings) as server:
            address = re.search(r"listening on (\S+)", await server.line_with("listening on"))[1]
            await server.line_with("ready after")
            async with grpc.aio.insecure_channel(address) as channel:
                request = chat(max_tokens=5)
                request.model = NAME
                events = [event async for event in inference_pb2_grpc.InferenceServiceStub(channel).Run(request)]
        assert events[-1].completed.usage.completion_tokens > 0
        assert hub.sent_bytes[WEIGHTS] < 1.5 * size
        (folder,) = (tmp_path / "home").glob("hub/models--owner--killed/snapshots/*")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents(source)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
