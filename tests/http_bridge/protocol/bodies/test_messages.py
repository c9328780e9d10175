"""Messages: thoughts, prefixes, old calls, and parts that are not text."""

import pytest

from http_bridge.errors import ApiError
from http_bridge.protocol.profiles import PROFILES
from http_bridge.protocol.run_body import ToolCall, Turn
from http_bridge.protocol.to_grpc import run_request
from tests.http_bridge.conftest import BODIES

USER = {"role": "user", "content": "hi"}


def chat(*messages, **fields):
    return BODIES.chat({"model": "m", "messages": list(messages), **fields})


def problem(*messages, **fields):
    with pytest.raises(ApiError) as caught:
        chat(*messages, **fields)
    assert (caught.value.status, caught.value.code) == (400, 5006)
    return caught.value


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Oslo", "reasoning_content": "think"},
        {"content": "Oslo", "reasoning": "think"},
        {"content": "Oslo", "thinking": "think"},
        {
            "content": "Oslo",
            "reasoning_details": [{"type": "reasoning.text", "text": "think"}, {"type": "x", "data": "y"}],
        },
        {"content": [{"type": "thinking", "thinking": "think"}, {"type": "text", "text": "Oslo"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "think"}]},
                {"type": "text", "text": "Oslo"},
            ]
        },
        {"content": [{"type": "reasoning", "text": "think"}, {"type": "output_text", "text": "Oslo"}]},
    ],
)
def test_thoughts_of_an_earlier_reply_reach_the_contract(message):
    body = chat(USER, {"role": "assistant", **message}, USER)
    turn = run_request(body, PROFILES["default"], model="m", account="").chat.turns[1]
    assert (turn.content, turn.reasoning) == ("Oslo", "think")


@pytest.mark.parametrize(
    "inner", [{"text": 5}, {"text": ["a"]}, {"thinking": [{"text": 5}]}, {"reasoning": {"a": "b"}}]
)
def test_thoughts_that_are_not_text_are_left_out(inner):
    part = {"type": "thinking", **inner}
    turn = chat(USER, {"role": "assistant", "content": [part, {"type": "text", "text": "Oslo"}]}, USER).turns[1]
    assert (turn.content, turn.reasoning) == ("Oslo", "")


def test_half_a_surrogate_pair_in_arguments_is_replaced():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":"\\ud800é"}'}}
    body = chat(USER, {"role": "assistant", "content": None, "tool_calls": [call]})
    request = run_request(body, PROFILES["default"], model="m", account="")
    assert request.chat.turns[1].tool_calls[0].arguments == '{"a": "?é"}'


def test_a_refusal_is_text():
    assert chat(USER, {"role": "assistant", "content": None, "refusal": "no"}, USER).turns[1].content == "no"
    assert chat(USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}).turns[1].content == "no"


def test_calls_of_openais_first_form_are_tool_calls():
    asked = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    body = chat(USER, asked, {"role": "function", "name": "f", "content": "5"})
    assert body.turns[1].tool_calls == (ToolCall("", "f", "{}"),)
    assert body.turns[2] == Turn(role="tool", content="5", name="f")


def test_a_call_of_a_custom_tool_is_a_call_with_its_input():
    call = {"id": "1", "type": "custom", "custom": {"name": "grep", "input": "x"}}
    turns = chat(
        USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": ""}
    ).turns
    assert turns[1].tool_calls == (ToolCall("1", "grep", '{"input": "x"}'),)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (False, False)),
        ({"continue_final_message": True}, (True, False)),
        ({"continue_final_message": True, "add_generation_prompt": False}, (True, False)),
        ({"add_generation_prompt": False}, (False, True)),
        ({"add_generation_prompt": True, "continue_final_message": False}, (False, False)),
    ],
)
def test_the_last_message_can_be_continued(fields, expected):
    body = chat(USER, {"role": "assistant", "content": "The"}, **fields)
    assert (body.continues_turn, body.omits_generation_prompt) == expected
    sent = run_request(body, PROFILES["default"], model="m", account="").chat
    assert (sent.continue_final_turn, sent.omit_generation_prompt) == expected


def test_a_prefix_is_continued():
    assert chat(USER, {"role": "assistant", "content": "The", "prefix": True}).continues_turn


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([USER], {"continue_final_message": True}, "continue_final_message"),
        ([{**USER, "prefix": True}], {}, "messages[0].prefix"),
        (
            [{"role": "assistant", "content": "x"}],
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
    ],
)
def test_a_continuation_needs_an_assistants_message(messages, fields, param):
    assert problem(*messages, **fields).param == param


@pytest.mark.parametrize(
    ("part", "holds"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}, "a picture"),
        ({"type": "input_image", "image_url": "https://x/y.png"}, "a picture"),
        ({"type": "image", "image": "data:image/png;base64,x"}, "a picture"),
        ({"type": "image", "source": {"type": "base64", "data": "x"}}, "a picture"),
        ({"image_url": {"url": "https://x"}}, "a picture"),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, "sound"),
        ({"type": "file", "file": {"file_id": "x"}}, "a file"),
        ({"type": "input_file", "file_id": "x"}, "a file"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "a video"),
        ({"type": "text", "text": "data:image/png;base64,iVBORw0KGgo="}, "a data URL instead of text"),
        ({"type": "hologram"}, "the unknown type hologram"),
    ],
)
def test_a_part_that_is_not_text_is_refused_with_the_models_name(part, holds):
    error = problem({"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]})
    assert holds in error.description and "the model m reads text only" in error.description
    assert error.param.startswith("messages[0].content[1]")


@pytest.mark.parametrize("key", ["images", "image", "audio", "attachments", "video"])
def test_a_message_with_media_beside_its_text_is_refused(key):
    assert problem({**USER, key: ["iVBORw0KGgo="]}).param == f"messages[0].{key}"
    assert chat({**USER, key: None}).turns == (Turn(role="user", content="hi"),)


def test_all_faults_are_in_one_error_and_the_first_is_its_param():
    error = problem({"role": "user", "content": [{"type": "image_url"}]}, temperature=9, modalities=["audio"])
    assert error.param == "temperature"
    for part in (
        "'/temperature' must be <= 5",
        "'/messages/0/content/0' (image_url) is a picture",
        "'/modalities' asks",
    ):
        assert part in error.description
