"""The events of replies with tool calls: their text, calls, token counts and finish reasons."""

import json

import pytest

from inference_server.generation import Completed, Delta, FinishReason, Started, Timings, Usage
from inference_server.text.tool_calls import with_tool_calls
from inference_server.text.tool_formats import Tool

TOOL = Tool(
    "get_weather",
    "",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
)
CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)


def completed(reason: FinishReason, stop_string: str | None = None) -> Completed:
    return Completed(reason, stop_string, Usage(1, 1), Timings(0.0, 0.0, 0.0))


async def events_of(text: str, end: Completed, *, place="anywhere", tool_format="qwen3_coder"):
    """Return the events of a reply whose tokens are single characters."""

    async def source():
        yield Started(1, 1)
        for character in text:
            yield Delta(character, 1)
        yield end

    return [event async for event in with_tool_calls(source(), tool_format, [TOOL], 1, place)]


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def calls_of(events):
    found = [call for event in events if isinstance(event, Delta) for call in event.tool_calls]
    return [(call.name, json.loads(call.arguments)) for call in found]


async def test_two_calls_in_xml_arrive_token_by_token_with_typed_values():
    cities = ["Oslo", "a < b\n</tool_call> and\n</parameter"]
    text = "I look. " + "\n".join(CALL.format(city=city) for city in cities)
    events = await events_of(text, completed(FinishReason.STOP))
    assert text_of(events) == "I look. "
    assert calls_of(events) == [("get_weather", {"city": city, "days": 3}) for city in cities]
    assert events[-1].finish_reason is FinishReason.TOOL_CALLS
    assert sum(event.num_tokens for event in events if isinstance(event, Delta)) == len(text)


@pytest.mark.parametrize(
    "end",
    [
        completed(FinishReason.LENGTH),
        completed(FinishReason.TIME_LIMIT),
        completed(FinishReason.STOP, stop_string="</function>"),
    ],
)
@pytest.mark.parametrize("place", ["anywhere", "only", "beginning"])
async def test_a_cut_call_is_left_out_and_keeps_its_finish_reason(end, place):
    whole = CALL.format(city="Oslo")
    for length in (1, 5, 11, 40, 80, len(whole) - 30):
        events = await events_of(whole[:length], end, place=place)
        assert (text_of(events), calls_of(events), events[-1]) == ("", [], end)


async def test_calls_before_the_cut_are_kept():
    end = completed(FinishReason.LENGTH)
    events = await events_of(CALL.format(city="Oslo") + "\n" + CALL.format(city="Bergen")[:60], end)
    assert (text_of(events), len(calls_of(events)), events[-1]) == ("", 1, end)


@pytest.mark.parametrize(
    "text",
    [
        CALL.format(city="Oslo").replace("get_weather", "unknown"),
        CALL.format(city="Oslo").replace("</parameter>", "</param>"),
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo",
        "if a <tool and b",
    ],
)
async def test_what_is_no_call_stays_text_if_the_model_ended_the_reply(text):
    events = await events_of(text, completed(FinishReason.STOP))
    assert (text_of(events), events[-1].finish_reason) == (text, FinishReason.STOP)


async def test_half_of_a_surrogate_pair_in_an_argument_stays_an_escape():
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "\\ud83d"}}</tool_call>'
    events = await events_of(text, completed(FinishReason.STOP), tool_format="hermes")
    (call,) = [call for event in events if isinstance(event, Delta) for call in event.tool_calls]
    assert call.arguments.encode() == b'{"city": "\\ud83d"}'
