"""Tool calls in the models' own formats: calls that are parsed from a reply, and text that is not a call."""

import json
import random

import pytest

from inference_server.text.tool_calls import CallParser
from inference_server.text.tool_formats import Tool, call_grammar, call_text, detect_tool_format, supports_tools

CALL = '{"name": "weather", "arguments": {"city": "Kyoto"}}'
FORMS = {
    "hermes": [f"<tool_call>\n{CALL}\n</tool_call>", f"<tool_call>[{CALL}]</tool_call>"],
    "llama3": [
        '{"name": "weather", "parameters": {"city": "Kyoto"}}',
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Kyoto"}}',
    ],
    "mistral": [f"[TOOL_CALLS][{CALL}]", '[TOOL_CALLS]weather[ARGS]{"city": "Kyoto"}'],
}
CASES = [(form, text) for form, texts in FORMS.items() for text in texts]


def parsed(form, text, *, cut=10_000, names=("weather",)):
    """Return the text and calls of a reply that arrives in pieces of `cut` characters."""
    parser = CallParser(form, names, random.Random(1))
    pieces = [parser.push(text[start : start + cut]) for start in range(0, len(text), cut)]
    pieces.append(parser.finish())
    return "".join(shown for shown, _ in pieces), [call for _, calls in pieces for call in calls]


@pytest.mark.parametrize(("form", "text"), CASES)
@pytest.mark.parametrize("cut", [1, 3, 10_000])
def test_a_call_is_parsed_from_any_pieces(form, text, cut):
    shown, calls = parsed(form, text, cut=cut)
    assert (shown, [(call.name, json.loads(call.arguments)) for call in calls]) == (
        "",
        [("weather", {"city": "Kyoto"})],
    )


@pytest.mark.parametrize("cut", [1, 10_000])
def test_text_before_a_call_is_kept_but_not_spaces_between(cut):
    call = FORMS["hermes"][0]
    shown, calls = parsed("hermes", f"Let me see.{call}\n{call}", cut=cut)
    assert (shown, len(calls)) == ("Let me see.", 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["a < b and <tool", "plain", "[TOOL", '{"a": 1}', "{not json", "<|python"])
@pytest.mark.parametrize("cut", [1, 10_000])
def test_malformed_tool_call_is_plain_text(form, text, cut):
    assert parsed(form, text, cut=cut) == (text, [])


@pytest.mark.parametrize(("form", "text"), CASES)
def test_a_call_of_an_unknown_tool_stays_text(form, text):
    assert parsed(form, text, names=("other",)) == (text, [])


@pytest.mark.parametrize(("form", "text"), CASES)
def test_an_incomplete_call_stays_text(form, text):
    assert parsed(form, text[:-3]) == (text[:-3], [])


def test_ids_are_valid_in_the_strictest_template():
    _, calls = parsed("hermes", FORMS["hermes"][0] * 2)
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)
    assert calls[0].id != calls[1].id


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ messages }}", "hermes"),
        ("<tool_call>{{ tools }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}{{ tools }}", "mistral"),
        ("<|python_tag|>{{ tools }}", "llama3"),
        (None, "hermes"),
    ],
)
def test_the_format_is_that_of_the_chat_template(template, form):
    assert detect_tool_format(template) == form


@pytest.mark.parametrize(("template", "knows"), [("{% if tools %}", True), ("{{ messages }}", False), (None, False)])
def test_a_template_supports_tools_if_it_mentions_them(template, knows):
    assert supports_tools(template) is knows


def test_calls_of_earlier_turns_are_formatted_as_parsed():
    _, calls = parsed("hermes", FORMS["hermes"][0])
    assert parsed("hermes", call_text(calls))[1][0].arguments == calls[0].arguments


@pytest.mark.parametrize("form", FORMS)
def test_a_grammar_names_every_tool(form):
    tools = [Tool("weather", "", {}), Tool('odd "name"', "", {"properties": {"a": {"type": "string"}}})]
    text = call_grammar(form, tools, json.dumps)
    assert "call_0 | call_1" in text and "weather" in text
