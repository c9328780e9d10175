"""A real bridge before a scripted inference server, for clients of the Responses API."""

import asyncio
import json
from pathlib import Path

import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.clients.node_programs import environment, install
from tests.http_bridge.conftest import backend, bridge, servicer, short_pauses, start_bridge

__all__ = ["backend", "bridge", "servicer", "short_pauses", "start_bridge"]

ANSWER = "It is sunny in Oslo."
THOUGHTS = "The user asks about Oslo."
DOCUMENT = '{"city":"Oslo","degrees":21}'
_NODE_SECONDS = 60


async def weather_service(reply):
    """Think. Then answer with a document if one is required, call a tool if there is an unused one, or answer with text."""
    chat = reply.request.chat
    has_result = any(turn.role == "tool" for turn in chat.turns)
    may_call = chat.tools and chat.tool_choice != pb.TOOL_CHOICE_NONE and not has_result
    await reply.accept()
    await reply.start()
    await write(reply, pb.Delta(reasoning=THOUGHTS[:9]), pb.Delta(reasoning=THOUGHTS[9:]))
    if may_call:
        names = [tool.name for tool in chat.tools]
        name = next((name for name in names if name == "exec_command"), names[0])
        arguments = {"cmd": "echo from-the-shell"} if name == "exec_command" else {"city": "Oslo"}
        await write(
            reply, pb.Delta(tool_calls=[pb.ToolCall(id="abcdefghi", name=name, arguments=json.dumps(arguments))])
        )
    else:
        text = DOCUMENT if reply.request.HasField("response_format") else ANSWER
        await write(reply, *(pb.Delta(text=text[start : start + 4]) for start in range(0, len(text), 4)))
    usage = pb.Usage(prompt_tokens=5, completion_tokens=7, reasoning_tokens=3)
    reason = pb.FINISH_REASON_TOOL_CALLS if may_call else pb.FINISH_REASON_STOP
    await reply.context.write(pb.RunResponse(completed=pb.Completed(finish_reason=reason, usage=usage)))


async def write(reply, *deltas):
    for delta in deltas:
        await reply.context.write(pb.RunResponse(delta=delta))


@pytest.fixture
def weather(servicer):
    """Let the server answer questions about the weather."""
    servicer.script = weather_service
    return servicer


@pytest.fixture
def url(bridge, weather):
    """Return OpenAI's base URL."""
    return f"http://127.0.0.1:{bridge.port}/v1"


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    return install(Path(__file__).parent / "node", tmp_path_factory.mktemp("responses") / "programs")


@pytest.fixture
def run_node(programs):
    """Return a function that runs a program and returns the JSON that it prints."""

    async def run(*arguments):
        child = await asyncio.create_subprocess_exec(
            "node",
            *arguments,
            cwd=programs,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(child.communicate(), _NODE_SECONDS)
        assert child.returncode == 0, errors.decode()
        return json.loads(output)

    return run
