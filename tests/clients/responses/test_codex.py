"""The requests of the Codex CLI (0.171): its tools, its items, and the events that it reads."""

import json

import pytest

from tests.clients.responses.conftest import ANSWER, THOUGHTS
from tests.http_bridge.conftest import MODEL

pytestmark = pytest.mark.clients


def function(name, **properties):
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "name": name, "description": name, "strict": False, "parameters": schema}


PATCH_GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch hunk+ end_patch"}
TOOLS = [
    function("exec_command", cmd={"type": "string"}),
    function("view_image", path={"type": "string"}),
    {"type": "custom", "name": "apply_patch", "description": "Edits files", "format": PATCH_GRAMMAR},
    {"type": "local_shell"},
    {"type": "web_search", "external_web_access": False},
    {
        "type": "namespace",
        "name": "multi_agent_v1",
        "description": "Tools for agents",
        "tools": [function("spawn_agent", message={"type": "string"})],
    },
]


def message(role, text, kind="input_text"):
    return {"type": "message", "id": f"msg_{role}", "role": role, "content": [{"type": kind, "text": text}]}


BODY = {
    "model": MODEL,
    "input": [
        message("developer", "You are a coding agent running in the Codex CLI."),
        message("user", "<environment_context>\n  <cwd>/work</cwd>\n</environment_context>"),
        message("user", "Run the tests"),
    ],
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a22c44-6731-7013-8348-ca282fea746e",
    "client_metadata": {"session_id": "01a22c44-6731-7013-8348-ca282fea746e"},
}
HEADERS = {
    "accept": "text/event-stream",
    "originator": "codex_exec",
    "session-id": "01a22c44",
    "accept-encoding": "zstd,gzip",
}


@pytest.fixture
def ask(bridge, weather):
    """Return a function that sends a request and returns the items that Codex reads from the stream."""

    async def send(**fields):
        response = await bridge.ask({**BODY, **fields}, url="/v1/responses", headers=HEADERS)
        assert response.status_code == 200, response.text
        events = [json.loads(event.split("\ndata: ")[1]) for event in response.text.strip().split("\n\n")]
        assert events[-1]["type"] == "response.completed" and events[-1]["response"]["usage"]["total_tokens"] == 12
        return [event["item"] for event in events if event["type"] == "response.output_item.done"]

    return send


async def test_a_turn_continues_after_a_command(ask, weather):
    thoughts, call = await ask()
    assert thoughts["summary"] == [{"type": "summary_text", "text": THOUGHTS}]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "exec_command",
        {"cmd": "echo from-the-shell"},
    )
    # Codex sends thoughts back without their text.
    replayed = {"type": "reasoning", "summary": thoughts["summary"], "encrypted_content": thoughts["encrypted_content"]}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "from-the-shell\n"}
    _, answer = await ask(input=[*BODY["input"], replayed, call, result])
    assert answer["content"][0]["text"] == ANSWER
    *_, reply, tool = weather.requests[1].chat.turns
    assert (reply.reasoning, reply.tool_calls[0].name) == (THOUGHTS, "exec_command")
    assert (tool.name, tool.content) == ("exec_command", "from-the-shell\n")


async def test_hosted_tools_are_left_out_and_the_others_can_be_called(ask, weather):
    await ask()
    names = [tool.name for tool in weather.requests[0].chat.tools]
    assert names == ["exec_command", "view_image", "apply_patch", "multi_agent_v1__spawn_agent"]


async def test_a_long_session_may_have_every_kind_of_item(ask, weather):
    items = [
        *BODY["input"],
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABo-from-another-provider"},
        message("assistant", "I will look.", "output_text"),
        {
            "type": "local_shell_call",
            "call_id": "c1",
            "status": "completed",
            "action": {"type": "exec", "command": ["ls"]},
        },
        {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin Patch\n"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "Success"},
        {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "pytest"}},
        function_call := {
            "type": "function_call",
            "call_id": "c3",
            "namespace": "multi_agent_v1",
            "name": "spawn_agent",
            "arguments": '{"message": "help"}',
        },
        {"type": "function_call_output", "call_id": "c3", "output": [{"type": "input_text", "text": "spawned"}]},
    ]
    await ask(input=items)
    turns = weather.requests[0].chat.turns
    assert [turn.role for turn in turns[3:]] == ["assistant", "tool", "assistant", "tool", "assistant", "tool"]
    assert [turn.name for turn in turns if turn.role == "tool"] == [
        "local_shell",
        "apply_patch",
        f"multi_agent_v1__{function_call['name']}",
    ]
