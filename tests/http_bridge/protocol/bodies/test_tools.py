"""Tools and the choice among them, in the forms of OpenAI, Workers AI and Anthropic."""

import pytest

from http_bridge.errors import ApiError
from http_bridge.protocol.profiles import PROFILES
from http_bridge.protocol.run_body import Tool
from http_bridge.protocol.to_grpc import run_request
from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import BODIES

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "get_time"}}
HOSTED = {"type": "web_search"}
USER = {"role": "user", "content": "Weather in Oslo?"}
REQUIRED = ("required", "", ())
FORCED = ("required", "get_weather", ())


def chat(**fields):
    return BODIES.chat({"model": "m", "messages": [USER], "tools": [WEATHER, TIME], **fields})


def run(**fields):
    return BODIES.run({"messages": [USER], "tools": [WEATHER, TIME], **fields}, model="m")


def choice(body):
    return body.tool_choice, body.tool_name, body.allowed_tools


def problem(read=chat, **fields):
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.code) == (400, 5006)
    return caught.value


def allowed(*tools, mode="required", nested=True):
    inner = {"mode": mode, "tools": list(tools)}
    return {"type": "allowed_tools", **({"allowed_tools": inner} if nested else inner)}


@pytest.mark.parametrize("read", [chat, run])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("any", REQUIRED),
        ("required", REQUIRED),
        ("none", ("none", "", ())),
        ("", ("auto", "", ())),
        (None, ("auto", "", ())),
        ({"type": "any"}, REQUIRED),
        ({"type": "auto"}, ("auto", "", ())),
        ("get_weather", FORCED),
        ({"type": "function", "function": {"name": "get_weather"}}, FORCED),
        ({"type": "function", "name": "get_weather"}, FORCED),
        ({"type": "tool", "name": "get_weather"}, FORCED),
        ({"function": {"name": "get_weather"}}, FORCED),
        (allowed(WEATHER), ("required", "", ("get_weather",))),
        (allowed({"type": "function", "name": "get_time"}, mode="auto"), ("auto", "", ("get_time",))),
        (allowed(WEATHER, WEATHER, TIME, nested=False), ("required", "", ("get_weather", "get_time"))),
        (allowed("get_time", mode="any"), ("required", "", ("get_time",))),
    ],
)
def test_every_form_of_a_choice_is_read(read, given, expected):
    assert choice(read(tool_choice=given)) == expected


@pytest.mark.parametrize(
    ("given", "param", "complaint"),
    [
        ("sometimes", "tool_choice", "is none, auto, required, any, or an object that names a tool, not sometimes"),
        ({"type": "function"}, "tool_choice", "does not name a function"),
        ({"type": "function", "function": {"name": ["x"]}}, "tool_choice", "does not name a function"),
        ({"type": "tool", "name": "x"}, "tool_choice.name", "is not the name of one of the tools"),
        ({"type": "custom", "custom": {"name": "x"}}, "tool_choice", "names a tool of type custom"),
        ({"type": "web_search"}, "tool_choice", "names a tool of type web_search"),
        ({"type": "mcp", "server_label": "x"}, "tool_choice", "names a tool of type mcp"),
        ({"type": ["x"]}, "tool_choice", "only functions can be called here"),
        (allowed(), "tool_choice.allowed_tools.tools", "is a list of at least one tool"),
        (allowed(WEATHER, mode="none"), "tool_choice.allowed_tools.mode", "is auto or required"),
        (allowed(WEATHER, mode=["x"], nested=False), "tool_choice.mode", "is auto or required"),
        (allowed(WEATHER, {"name": "x"}), "tool_choice.allowed_tools.tools[1]", "is not one of the tools"),
        (allowed(HOSTED), "tool_choice.allowed_tools.tools[0]", "is not one of the tools"),
        (allowed(5), "tool_choice.allowed_tools.tools[0]", "is not one of the tools"),
        (allowed({"function": {}}), "tool_choice.allowed_tools.tools[0]", "is not one of the tools"),
    ],
)
def test_a_choice_that_cannot_be_made_is_named(given, param, complaint):
    error = problem(tool_choice=given)
    assert (error.param, complaint in error.description) == (param, True)


def test_a_choice_reaches_the_contract():
    request = run_request(
        chat(tool_choice=allowed(WEATHER), parallel_tool_calls=False), PROFILES["default"], model="m", account=""
    )
    assert list(request.chat.allowed_tools) == ["get_weather"]
    assert (request.chat.tool_choice, request.chat.parallel_tool_calls) == (pb.TOOL_CHOICE_REQUIRED, False)
    assert not run_request(chat(), PROFILES["default"], model="m", account="").chat.HasField("parallel_tool_calls")


def test_the_choice_of_one_tool_is_one_call_unless_the_client_wants_several():
    named = {"type": "function", "function": {"name": "get_weather"}}
    assert chat(tool_choice=named).parallel_tool_calls is False
    assert chat(tool_choice=named, parallel_tool_calls=True).parallel_tool_calls is True
    assert chat(tool_choice="required").parallel_tool_calls is None


def test_anthropics_switch_for_parallel_calls_is_read():
    assert chat(tool_choice={"type": "auto", "disable_parallel_tool_use": True}).parallel_tool_calls is False


@pytest.mark.parametrize(
    "tool",
    [
        HOSTED,
        {"type": "web_search_preview"},
        {"type": "mcp", "server_label": "x", "server_url": "https://x"},
        {"type": "file_search", "vector_store_ids": ["x"]},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "custom", "custom": {"name": "grep"}},
        {"type": "custom", "name": "apply_patch"},
        {"type": "namespace", "name": "x", "tools": [{"type": "function", "name": "y"}]},
        {"type": "local_shell"},
    ],
)
@pytest.mark.parametrize("read", [chat, run])
def test_a_tool_that_is_not_a_function_is_left_out(read, tool):
    body = read(tools=[tool, WEATHER, tool])
    assert ([each.name for each in body.tools], body.skipped_tools) == (["get_weather"], (tool["type"],))


def test_a_required_call_needs_a_function_among_the_tools():
    assert "web_search is not a function" in problem(tools=[HOSTED], tool_choice="required").description
    assert chat(tools=[HOSTED], tool_choice="auto").tools == ()


def test_allowed_tools_that_were_left_out_are_passed_over():
    tools = [HOSTED, WEATHER]
    assert choice(chat(tools=tools, tool_choice=allowed(HOSTED, WEATHER))) == ("required", "", ("get_weather",))
    assert choice(chat(tools=tools, tool_choice=allowed(HOSTED, mode="auto"))) == ("none", "", ())
    assert "has no function" in problem(tools=tools, tool_choice=allowed(HOSTED)).description


@pytest.mark.parametrize(
    "tool", [{"type": "function", "name": "f"}, {"name": "f"}, {"type": None, "function": {"name": "f"}}]
)
def test_a_function_is_nested_or_flat(tool):
    assert chat(tools=[tool]).tools == (Tool("f", "", ""),)


def test_anthropics_name_of_the_schema_is_read():
    assert chat(tools=[{"name": "f", "input_schema": {"type": "object"}}]).tools == (
        Tool("f", "", '{"type": "object"}'),
    )


@pytest.mark.parametrize("tool", [{"type": "function"}, {}, {"type": 5}, {"type": ""}, 5, {"function": {"name": ""}}])
def test_a_tool_without_a_form_is_refused(tool):
    assert problem(tools=[tool]).param.startswith("tools[0]")


def test_tools_of_a_prompt_become_tools_of_its_user_turn():
    body = BODIES.run({"prompt": "Weather?", "tools": [WEATHER], "tool_choice": "any"}, model="m")
    request = run_request(body, PROFILES["default"], model="m", account="")
    assert [(turn.role, turn.content) for turn in request.chat.turns] == [("user", "Weather?")]
    assert ([tool.name for tool in request.chat.tools], request.chat.tool_choice) == (
        ["get_weather"],
        pb.TOOL_CHOICE_REQUIRED,
    )


def test_tools_of_a_raw_prompt_are_refused():
    def raw(**fields):
        return BODIES.run({"prompt": "hi", "raw": True, "tools": [WEATHER], **fields}, model="m")

    assert "'/tools' needs the model's chat template" in problem(raw).description
    assert raw(tool_choice="none").prompt == "hi"
