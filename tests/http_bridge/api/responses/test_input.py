"""The input of OpenAI's Responses API: items, formats, and what is refused by name."""

import pytest

from tests.http_bridge.api.responses.conftest import ASKED, TIME, URL, USER, WEATHER
from tests.http_bridge.conftest import MODEL

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def turns(chat):
    return [(turn.role, turn.content) for turn in chat.turns]


async def test_a_text_is_the_users_message(chat_of):
    chat = await chat_of(instructions="Be brief")
    assert turns(chat) == [("system", "Be brief"), ("user", "hi")]


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
    ],
)
async def test_every_form_of_a_message_is_a_turn(chat_of, item):
    assert turns(await chat_of(input=[item])) == [("user", "hi")]


async def test_messages_of_every_role_keep_their_order(chat_of):
    parts = [{"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "no"}]
    items = [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": parts},
        {"role": "user", "content": "v"},
    ]
    expected = [("developer", "d"), ("system", "s"), ("user", "u"), ("assistant", "ano"), ("user", "v")]
    assert turns(await chat_of(input=items)) == expected


async def test_thoughts_text_and_calls_are_one_turn(chat_of):
    items = [
        USER,
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"role": "assistant", "content": "Wait."},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Oslo"}'},
        {"type": "function_call", "call_id": "c2", "name": "time", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
        {"role": "assistant", "content": "Rain at noon."},
    ]
    chat = await chat_of(input=items, tools=[WEATHER, TIME])
    assert [turn.role for turn in chat.turns] == ["user", "assistant", "tool", "tool", "assistant"]
    reply, first, second = chat.turns[1:4]
    assert (reply.reasoning, reply.content) == ("Hm", "Wait.")
    assert [(call.id, call.name, call.arguments) for call in reply.tool_calls] == [
        ("c1", "weather", '{"city": "Oslo"}'),
        ("c2", "time", "{}"),
    ]
    assert (first.tool_call_id, first.name, first.content) == ("c1", "weather", "rain")
    assert (second.tool_call_id, second.name, second.content) == ("c2", "time", "noon")


async def test_messages_of_the_assistant_in_a_row_stay_apart(chat_of):
    items = [USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert turns(await chat_of(input=items))[1:] == [("assistant", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("item", "thoughts"),
    [
        ({"summary": [{"type": "summary_text", "text": "Hm"}]}, "Hm"),
        ({"summary": [], "encrypted_content": "gAAAAB-of-openai"}, ""),
        ({"summary": [{"type": "summary_text", "text": "Hm"}], "encrypted_content": "tailrace-thoughts-1.%%%"}, "Hm"),
        ({}, ""),
    ],
)
async def test_thoughts_of_other_services_are_used_as_far_as_they_are_text(chat_of, item, thoughts):
    chat = await chat_of(input=[USER, {"type": "reasoning", **item}, {"role": "assistant", "content": "a"}])
    assert (chat.turns[1].reasoning, chat.turns[1].content) == (thoughts, "a")


@pytest.mark.parametrize(
    ("call", "output", "arguments", "content"),
    [
        (
            {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "*** Begin"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "Done"},
            '{"input": "*** Begin"}',
            "Done",
        ),
        (
            {"type": "local_shell_call", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}},
            {"type": "local_shell_call_output", "id": "c", "output": "a.txt"},
            '{"type": "exec", "command": ["ls"]}',
            "a.txt",
        ),
        (
            {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
            {
                "type": "shell_call_output",
                "call_id": "c",
                "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
            },
            '{"commands": ["ls"]}',
            '{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}',
        ),
    ],
)
async def test_calls_of_other_kinds_are_shown_as_functions(chat_of, call, output, arguments, content):
    chat = await chat_of(input=[USER, call, output])
    assert chat.turns[1].tool_calls[0].arguments == arguments
    assert (chat.turns[2].role, chat.turns[2].tool_call_id, chat.turns[2].content) == ("tool", "c", content)


async def test_items_of_hosted_tools_without_text_are_left_out(chat_of):
    items = [USER, {"type": "web_search_call", "id": "ws_1", "status": "completed"}, {"role": "user", "content": "b"}]
    assert turns(await chat_of(input=items)) == [("user", "hi"), ("user", "b")]


@pytest.mark.parametrize(
    ("item", "complaint", "param"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "which is not stored: send the item itself", "input[0]"),
        ({"id": "msg_1"}, "which is not stored: send the item itself", "input[0]"),
        ({"type": "compaction", "encrypted_content": "x"}, "is encrypted by another service", "input[0]"),
        ({"type": "nonsense"}, "nonsense is not a known type of item", "input[0].type"),
        ({"type": "message", "content": "hi"}, "required properties at '/input/0' are 'role'", "input[0]"),
        ({"type": "function_call", "call_id": "c", "arguments": "{}"}, "are 'name'", "input[0]"),
        (
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1]"},
            "must be a JSON object as text",
            "input[0].arguments",
        ),
        ({"role": "tool", "content": "rain", "tool_call_id": "c"}, "send function_call and", "input[0]"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}, "send function_call and", "input[0]"),
        ({"type": "image_generation_call", "result": "iVBO"}, f"the model {MODEL} reads text only", "input[0]"),
    ],
)
async def test_items_that_cannot_be_used_are_refused_by_name(refusal_of, item, complaint, param):
    error = await refusal_of(input=[item])
    assert complaint in error["message"] and error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
@pytest.mark.parametrize("place", ["message", "output"])
async def test_pictures_and_files_are_refused_with_the_model_and_the_place(refusal_of, kind, place):
    part = {"type": kind, "image_url": "data:image/png;base64,iVBORw0KGgo=", "file_id": "f"}
    message = {"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, part]}
    output = {"type": "function_call_output", "call_id": "c", "output": [part]}
    error = await refusal_of(input=[message if place == "message" else output])
    assert kind in error["message"] and f"the model {MODEL} reads text only" in error["message"]
    assert error["param"] == ("input[0].content[1]" if place == "message" else "input[0].output[0]")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"input": []}, "input"),
        ({"max_output_tokens": -7}, "max_output_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
    ],
)
async def test_a_field_that_cannot_be_honoured_is_refused_by_name(refusal_of, fields, param):
    error = await refusal_of(**fields)
    assert error["param"] == param and f"'/{param.split('.')[0].split('[')[0]}" in error["message"]


async def test_fields_without_an_effect_are_accepted(chat_of):
    chat = await chat_of(
        store=False,
        background=False,
        truncation="disabled",
        previous_response_id=None,
        conversation=None,
        service_tier="flex",
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        text={"verbosity": "low"},
        include=["web_search_call.action.sources", "reasoning.encrypted_content"],
        client_metadata={"a": "b"},
        reasoning={"summary": "auto"},
    )
    assert chat == await chat_of()


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, ""),
        ({"type": "json_schema", "name": "answer", "strict": True, "schema": SCHEMA}, "city"),
    ],
)
async def test_every_text_format_reaches_the_server(bridge, servicer, form, schema):
    body = (await bridge.ask({**ASKED, "text": {"format": form}, "tools": [WEATHER]}, url=URL)).json()
    request = servicer.requests[0]
    assert body["text"]["format"] == form
    assert request.HasField("response_format") == (schema is not None)
    assert request.response_format.json_object == (schema == "")
    assert (schema or "") in request.response_format.json_schema


async def test_sampling_fields_reach_the_server(bridge, servicer):
    await bridge.ask({**ASKED, "temperature": 1.5, "top_p": 0, "max_output_tokens": 9, "seed": 3}, url=URL)
    sampling = servicer.requests[0].sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (1.5, 9, 3)
    assert sampling.top_p == pytest.approx(0.001)


async def test_an_unset_limit_stays_unset(bridge, servicer):
    for profile in ("default", "2026"):
        await bridge.ask(ASKED, url=URL, headers={"tailrace-profile": profile})
    assert not any(request.sampling.HasField("max_tokens") for request in servicer.requests)
