"""Clients of Workers AI's newer models, whose replies have `choices`: the AI SDK with Cloudflare's provider."""

import asyncio
import json

import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.clients.conftest import ACCOUNT
from tests.clients.node_programs import environment
from tests.http_bridge.conftest import MODEL, Backend, running_bridge

pytestmark = [pytest.mark.clients, pytest.mark.timeout(500)]


async def thinking(reply):
    await reply.accept()
    await reply.start()
    for delta in (pb.Delta(reasoning="Hm", tokens=1), pb.Delta(text="Yes", tokens=1), pb.Delta(text=" 6", tokens=1)):
        await reply.context.write(pb.RunResponse(delta=delta))
    await reply.complete()


async def test_the_ai_sdk_separates_thoughts_from_text(programs):
    backend = Backend()
    backend.servicer.script = thinking
    backend.servicer.models = [pb.Model(name=MODEL, window=30, reply_shape="choices")]
    await backend.server.start()
    async with running_bridge(backend.address) as bridge:
        command = ["node", "thoughts.mjs", f"http://127.0.0.1:{bridge.port}/client/v4", ACCOUNT, MODEL]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=programs, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
    await backend.server.stop(None)
    assert process.returncode == 0, errors.decode()
    for found in json.loads(output).values():
        assert (found["text"], found["thoughts"], found["finishReason"]) == ("Yes 6", "Hm", "stop")
        assert (found["usage"]["inputTokens"], found["usage"]["outputTokens"]) == (5, 7)
