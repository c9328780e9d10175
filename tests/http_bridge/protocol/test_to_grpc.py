"""Conversion of bodies to contract messages, and of events to bytes."""

import json

import pytest

from http_bridge.protocol import sse
from http_bridge.protocol.profiles import PROFILES
from http_bridge.protocol.to_grpc import run_request
from tailrace.v1.inference_pb2 import ChatTurn
from tests.http_bridge.conftest import BODIES


def translated(**body):
    return run_request(BODIES.run(body, model="m"), PROFILES["default"], model="m", account="a")


def test_prompt_is_one_user_turn():
    assert list(translated(prompt="hi").chat.turns) == [ChatTurn(role="user", content="hi")]


def test_raw_prompt_is_text():
    assert translated(prompt="hi", raw=True).text == "hi"


def test_messages_are_turns_and_raw_is_not_for_them():
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    turns = translated(messages=messages, raw=True).chat.turns
    assert [(turn.role, turn.content) for turn in turns] == [("system", "be brief"), ("user", "hi")]


def test_max_tokens_defaults_to_256_but_not_in_a_stream():
    assert translated(prompt="hi").sampling.max_tokens == 256
    assert not translated(prompt="hi", stream=True).sampling.HasField("max_tokens")
    assert translated(prompt="hi", stream=True, max_tokens=3).sampling.max_tokens == 3


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "seed", "repetition_penalty", "presence_penalty"])
def test_fields_that_were_left_out_stay_unset(field):
    assert not translated(prompt="hi").sampling.HasField(field)


def test_zero_temperature_is_sent():
    assert translated(prompt="hi", temperature=0).sampling.HasField("temperature")


def test_event_is_compact_json_in_utf8():
    assert (
        sse.event({"response": 'é"\n', "usage": {"a": 1}})
        == 'data: {"response":"é\\"\\n","usage":{"a":1}}\n\n'.encode()
    )


@pytest.mark.parametrize("character", [chr(code) for code in (*range(32), 0x7F, 0x85, 0x2028, 0x2029)])
def test_event_is_one_line_by_every_definition_of_a_line_end(character):
    line, blank = sse.event({"response": character}).decode().splitlines()
    assert json.loads(line.removeprefix("data: ")) == {"response": character}
    assert blank == ""


@pytest.mark.parametrize("text", ["New", ' "York"\\', "\n“é”\x85\u2028", "\x00\x7f", "🏳️‍🌈", "</script>"])
@pytest.mark.parametrize("padding", [{}, {"p": "x9"}], ids=["plain", "padded"])
def test_text_event_has_the_same_bytes_as_the_general_event(text, padding):
    assert sse.text_event(text, padding.get("p")) == sse.event({"response": text, **padding})
