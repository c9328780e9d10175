"""Tools of OpenAI's Responses API: functions, custom tools, namespaces, and the choice among them."""

import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.api.responses.conftest import ASKED, TIME, URL, USER, WEATHER


async def test_hosted_tools_are_left_out_and_functions_stay(bridge, servicer):
    tools = [{"type": "web_search"}, WEATHER, {"type": "mcp", "server_label": "x"}, {"type": "local_shell"}]
    body = (await bridge.ask({**ASKED, "tools": tools}, url=URL)).json()
    assert [tool.name for tool in servicer.requests[0].chat.tools] == ["weather"]
    assert [tool["type"] for tool in body["tools"]] == ["function"]


async def test_hosted_tools_alone_are_no_tools(chat_of):
    assert not (await chat_of(tools=[{"type": "web_search"}])).tools


async def test_a_namespace_without_a_list_of_tools_has_none(chat_of):
    tools = [{"type": "namespace", "name": "shop", "tools": 5}, WEATHER]
    chat = await chat_of(input=[{"type": "additional_tools", "tools": tools}, USER])
    assert [tool.name for tool in chat.tools] == ["weather"]


@pytest.mark.parametrize(
    ("choice", "expected", "name", "allowed"),
    [
        (None, pb.TOOL_CHOICE_AUTO, "", []),
        ("auto", pb.TOOL_CHOICE_AUTO, "", []),
        ("none", pb.TOOL_CHOICE_NONE, "", []),
        ("required", pb.TOOL_CHOICE_REQUIRED, "", []),
        ("any", pb.TOOL_CHOICE_REQUIRED, "", []),
        ({"type": "function", "name": "time"}, pb.TOOL_CHOICE_REQUIRED, "time", []),
        ({"type": "function", "function": {"name": "time"}}, pb.TOOL_CHOICE_REQUIRED, "time", []),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "time"}]},
            pb.TOOL_CHOICE_AUTO,
            "",
            ["time"],
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "time"}, {"type": "mcp", "server_label": "x"}],
            },
            pb.TOOL_CHOICE_REQUIRED,
            "",
            ["time"],
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}, pb.TOOL_CHOICE_NONE, "", []),
    ],
)
async def test_every_tool_choice_reaches_the_server(chat_of, choice, expected, name, allowed):
    tools = [WEATHER, TIME, {"type": "mcp", "server_label": "x"}]
    chat = await chat_of(tools=tools, tool_choice=choice, parallel_tool_calls=False)
    assert (chat.tool_choice, chat.tool_name, list(chat.allowed_tools)) == (expected, name, allowed)
    assert chat.HasField("parallel_tool_calls") and chat.parallel_tool_calls is False


async def test_a_custom_tool_is_called_with_its_text(bridge, servicer):
    async def calls(reply):
        await reply.accept()
        await reply.start()
        made = pb.ToolCall(id="abc", name="apply_patch", arguments='{"input": "*** Begin\\n"}')
        await reply.context.write(pb.RunResponse(delta=pb.Delta(tool_calls=[made])))
        await reply.complete()

    servicer.script = calls
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: begin"}
    tool = {"type": "custom", "name": "apply_patch", "description": "Edits files", "format": grammar}
    body = {**ASKED, "tools": [tool], "tool_choice": {"type": "custom", "name": "apply_patch"}}
    (item,) = (await bridge.ask(body, url=URL)).json()["output"]
    assert (item["type"], item["call_id"], item["name"], item["input"]) == (
        "custom_tool_call",
        "abc",
        "apply_patch",
        "*** Begin\n",
    )
    (function,) = servicer.requests[0].chat.tools
    assert "start: begin" in function.description and '"input"' in function.parameters
    events = (await bridge.ask({**body, "stream": True}, url=URL)).text
    assert "event: response.custom_tool_call_input.done\n" in events


async def test_the_functions_of_a_namespace_have_its_name(bridge, servicer):
    async def calls(reply):
        await reply.accept()
        await reply.start()
        made = pb.ToolCall(id="abc", name="agents__spawn", arguments="{}")
        await reply.context.write(pb.RunResponse(delta=pb.Delta(tool_calls=[made])))
        await reply.complete()

    servicer.script = calls
    spawn = {"type": "function", "name": "spawn", "parameters": {"type": "object"}}
    tool = {"type": "namespace", "name": "agents", "description": "Agents", "tools": [spawn]}
    (item,) = (await bridge.ask({**ASKED, "tools": [tool]}, url=URL)).json()["output"]
    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "agents", "spawn")
    await bridge.ask({**ASKED, "input": [USER, item], "tools": [tool]}, url=URL)
    assert servicer.requests[1].chat.turns[1].tool_calls[0].name == "agents__spawn"


async def test_tools_of_an_item_are_added(chat_of):
    chat = await chat_of(input=[{"type": "additional_tools", "role": "developer", "tools": [WEATHER]}, USER])
    assert [tool.name for tool in chat.tools] == ["weather"]
