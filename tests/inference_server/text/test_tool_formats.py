"""Tool calls in the models' own formats: detection, calls that are parsed from a reply, and text that is not a call."""

import json
import random

import pytest

from inference_server.text.tool_calls import CallParser
from inference_server.text.tool_formats import MARKERS, Tool, call_text, detect_tool_format, supports_tools

WEATHER = Tool("weather", "", {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}})
CALL = '{"name": "weather", "arguments": {"city": "Kyoto"}}'
FORMS = {
    "hermes": [f"<tool_call>\n{CALL}\n</tool_call>", f"<tool_call>[{CALL}]</tool_call>"],
    "llama3": [
        '{"name": "weather", "parameters": {"city": "Kyoto"}}',
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Kyoto"}}',
        '{"type": "function", "name": "weather", "parameters": {"city": "Kyoto"}}',
    ],
    "mistral": [f"[TOOL_CALLS][{CALL}]", '[TOOL_CALLS]weather[ARGS]{"city": "Kyoto"}'],
    "mistral_args": [
        '[TOOL_CALLS]weather[ARGS]{"city": "Kyoto"}',
        '[TOOL_CALLS]weather[CALL_ID]a1[ARGS]{"city": "Kyoto"}',
    ],
    "qwen3_coder": [
        "<tool_call>\n<function=weather>\n<parameter=city>\nKyoto\n</parameter>\n</function>\n</tool_call>",
        "<tool_call><function=weather><parameter=city>Kyoto</parameter></function></tool_call>",
        f"<tool_call>\n{CALL}\n</tool_call>",
    ],
    "glm45": [
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Kyoto</arg_value>\n</tool_call>",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Kyoto</arg_value></tool_call>",
    ],
    "pythonic": ['[weather(city="Kyoto")]', "<|python_start|>[weather(city='Kyoto')]<|python_end|>"],
    "granite": [f"<|tool_call|>[{CALL}]"],
    "apertus": ['<|tools_prefix|>[{"weather": {"city": "Kyoto"}}]<|tools_suffix|>'],
    "kimi_k2": [
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Kyoto"}<|tool_call_end|><|tool_calls_section_end|>'
    ],
    "deepseek_v3": [
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Kyoto"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ],
    "deepseek_v31": [
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Kyoto"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ],
}
CASES = [(form, text) for form, texts in FORMS.items() for text in texts]
# Two calls in one reply.
PAIRS = {
    "hermes": FORMS["hermes"][0] + "\n" + FORMS["hermes"][1],
    "llama3": '{"name": "weather", "parameters": {}}; {"name": "weather", "parameters": {"city": "Oslo"}}',
    "mistral_args": FORMS["mistral_args"][0] * 2,
    "qwen3_coder": FORMS["qwen3_coder"][0] + "\n" + FORMS["qwen3_coder"][1],
    "glm45": FORMS["glm45"][0] + "\n" + FORMS["glm45"][1],
    "pythonic": '[weather(city="Kyoto"), weather(days=3)]',
    "deepseek_v31": FORMS["deepseek_v31"][0].replace("<｜tool▁calls▁end｜>", "")
    + FORMS["deepseek_v31"][0].replace("<｜tool▁calls▁begin｜>", ""),
}


def parsed(form, text, *, cut=10_000, tools=(WEATHER,), is_cut=False, place="anywhere"):
    """Return the text and calls of a reply that arrives in pieces of `cut` characters."""
    parser = CallParser(form, tools, random.Random(1), place)
    pieces = [parser.push(text[start : start + cut]) for start in range(0, len(text), cut)]
    pieces.append(parser.finish(is_cut=is_cut))
    return "".join(shown for shown, _ in pieces), [call for _, calls in pieces for call in calls]


def arguments(form, text, **options):
    """Return the arguments of a reply's calls, of which none may be shown."""
    shown, calls = parsed(form, text, **options)
    assert shown == ""
    return [json.loads(call.arguments) for call in calls]


@pytest.mark.parametrize("form", FORMS)
def test_white_space_before_a_call_is_no_text(form):
    for cut in (1, 10_000):
        for place in ("anywhere", "beginning", "only"):
            assert arguments(form, "\n\n" + FORMS[form][0], cut=cut, place=place) == [{"city": "Kyoto"}]


def test_every_format_has_a_case():
    assert set(FORMS) == set(MARKERS)


@pytest.mark.parametrize(("form", "text"), CASES)
def test_a_call_is_parsed_from_any_pieces(form, text):
    for cut in (1, 3, 10_000):
        for place in ("anywhere", "beginning", "only"):
            assert arguments(form, text, cut=cut, place=place) == [{"city": "Kyoto"}]


@pytest.mark.parametrize("form", PAIRS)
def test_two_calls_of_one_reply_are_parsed(form):
    for cut in (1, 10_000):
        assert len(arguments(form, PAIRS[form], cut=cut)) == 2


@pytest.mark.parametrize("cut", [1, 10_000])
def test_text_before_a_call_is_kept_but_not_spaces_between(cut):
    call = FORMS["hermes"][0]
    shown, calls = parsed("hermes", f"Let me see.{call}\n{call}", cut=cut)
    assert (shown, len(calls)) == ("Let me see.", 2)


@pytest.mark.parametrize("form", FORMS)
def test_text_that_only_begins_like_a_call_is_plain_text(form):
    for text in (
        "a < b and <tool",
        "plain",
        "[TOOL",
        '{"a": 1}',
        "{not json",
        "<|python",
        "[1, 2]",
        "[weathers]",
        '{"name": "Ada"}',
    ):
        for cut in (1, 10_000):
            assert parsed(form, text, cut=cut) == (text, [])
            assert parsed(form, " \n" + text, cut=cut) == (" \n" + text, [])


@pytest.mark.parametrize(("form", "text"), CASES)
def test_a_call_of_an_unknown_tool_stays_text(form, text):
    assert parsed(form, text, tools=(Tool("other", "", {}),)) == (text, [])


@pytest.mark.parametrize(("form", "text"), CASES)
def test_an_incomplete_call_stays_text_if_the_model_ended_it(form, text):
    if MARKERS[form].end and form in ("kimi_k2", "deepseek_v3", "deepseek_v31", "apertus"):
        text = text[: -len(MARKERS[form].end)]
    assert parsed(form, text[:-3]) == (text[:-3], [])


@pytest.mark.parametrize(("form", "text"), CASES)
def test_no_part_of_a_cut_call_is_shown(form, text):
    for length in range(len(text)):
        for place in ("anywhere", "only"):
            shown, _ = parsed(form, text[:length], cut=3, is_cut=True, place=place)
            assert shown == "", text[:length]


@pytest.mark.parametrize("form", FORMS)
def test_cut_text_without_a_call_is_shown(form):
    text = "Temperatures: {a} and [b] at 3 o'clock"
    assert parsed(form, text, cut=1, is_cut=True) == (text, [])
    text = f"If a {MARKERS[form].begin[0]}"
    assert parsed(form, text, cut=1, is_cut=True) == (text, [])


@pytest.mark.parametrize("form", FORMS)
def test_a_document_is_not_searched_for_calls(form):
    document = json.dumps({"a": "see " + FORMS[form][0]})
    for cut in (1, 10_000):
        assert parsed(form, document, cut=cut, place="beginning") == (document, [])


@pytest.mark.parametrize("form", ["hermes", "mistral", "granite"])
def test_a_marker_within_a_quoted_value_belongs_to_it(form):
    value = 'the text </tool_call> ends a call, and \\" quotes'
    markers = MARKERS[form]
    call = f'{{"name": "weather", "arguments": {{"city": "{value}"}}}}'
    body = call if form == "hermes" else f"[{call}]"
    assert arguments(form, f"{markers.begin}{body}{markers.end}", cut=1) == [{"city": json.loads(f'"{value}"')}]


@pytest.mark.parametrize(
    "value",
    [
        "two\nlines\n",
        "a < b && b > c",
        "if x </ y",
        "</tool_call>",
        "text</function>\n</tool_call> more",
        "</parameter> inside",
        "<parameter=none",
        "<tool_call>\n<function=weather>",
        "",
        " padded ",
        '{"json": "stays text"}',
        "3",
    ],
)
def test_an_xml_value_may_look_like_markup(value):
    text = f"<tool_call>\n<function=weather>\n<parameter=city>\n{value}\n</parameter>\n</function>\n</tool_call>"
    for cut in (1, 10_000):
        assert arguments("qwen3_coder", text + text, cut=cut) == [{"city": value}] * 2


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, "3", 3),
        ({"type": "integer"}, "3.0", 3),
        ({"type": "integer"}, "about 3", "about 3"),
        ({"type": "number"}, "2.5", 2.5),
        ({"type": "number"}, "1e400", "1e400"),
        ({"type": "boolean"}, "True", True),
        ({"type": "string"}, "true", "true"),
        ({"type": "string"}, "007", "007"),
        ({"type": "array", "items": {"type": "integer"}}, "[1,\n 2]", [1, 2]),
        ({"type": "object"}, '{"a": null}', {"a": None}),
        ({"type": "object"}, "{'a': True}", {"a": True}),
        ({"type": "object"}, '{"a": NaN}', '{"a": NaN}'),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "string", "nullable": True}, "null", None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "4", 4),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "four", "four"),
        ({"$ref": "#/$defs/n"}, "5", 5),
        ({"enum": [1, "1", "b"]}, "1", 1),
        ({"const": "3"}, "3", "3"),
        ({}, "[1]", [1]),
        ({}, "word", "word"),
    ],
)
@pytest.mark.parametrize("form", ["qwen3_coder", "glm45"])
def test_a_value_without_quotes_has_the_type_of_its_schema(form, schema, text, value):
    tool = Tool("weather", "", {"$defs": {"n": {"type": "integer"}}, "properties": {"x": schema}})
    call = {
        "qwen3_coder": f"<tool_call><function=weather><parameter=x>\n{text}\n</parameter></function></tool_call>",
        "glm45": f"<tool_call>weather<arg_key>x</arg_key><arg_value>{text}</arg_value></tool_call>",
    }
    assert arguments(form, call[form], tools=[tool]) == [{"x": value}]


def test_an_argument_that_the_schema_does_not_declare_is_text():
    text = "<tool_call><function=weather><parameter=zone>\n3\n</parameter></function></tool_call>"
    assert arguments("qwen3_coder", text) == [{"zone": "3"}]


def test_a_schema_that_refers_to_itself_many_times_is_read_at_once():
    loop = {"anyOf": [{"$ref": "#/$defs/n"}] * 8 + [{"type": "integer"}]}
    tool = Tool("weather", "", {"$defs": {"n": loop}, "properties": {"x": {"$ref": "#/$defs/n"}}})
    text = "<tool_call><function=weather><parameter=x>4</parameter></function></tool_call>"
    assert arguments("qwen3_coder", text, tools=[tool]) == [{"x": 4}]


@pytest.mark.parametrize(
    "text", ["[weather(city=open('x'))]", "[weather('Kyoto')]", "[weather(**{})]", "[weather(city=1+1)]"]
)
def test_python_in_a_pythonic_call_is_not_executed(text):
    assert parsed("pythonic", text) == (text, [])


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_call_with_a_number_that_json_cannot_represent_stays_text(number):
    text = f'<tool_call>{{"name": "weather", "arguments": {{"city": {number}}}}}</tool_call>'
    assert parsed("hermes", text) == (text, [])


def test_a_pythonic_call_may_have_json_values():
    text = '[weather(city="\\ud83d\\ude00", days=null, more={"a": [true, False]})]'
    assert arguments("pythonic", text) == [{"city": "😀", "days": None, "more": {"a": [True, False]}}]


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
        ("{{ '[TOOL_CALLS]' }}[ARGS]{{ tools }}", "mistral_args"),
        ("<|python_tag|>{{ tools }}", "llama3"),
        ("{{ tools }}<tool_call>\n<function=x>\n<parameter=y>", "qwen3_coder"),
        ("{{ tools }}<tool_call>{name}<arg_key>", "glm45"),
        ('{{ tools }}ipython [func_name1(params_name1=1)] "parameters"', "pythonic"),
        ("{{ tools }}<|tool_call|>", "granite"),
        ("{{ tools }}<|tools_prefix|>", "apertus"),
        ("{{ tools }}<|tool_calls_section_begin|>", "kimi_k2"),
        ("{{ tools }}<｜tool▁calls▁begin｜>```json", "deepseek_v3"),
        ("{{ tools }}<｜tool▁calls▁begin｜>", "deepseek_v31"),
        ("{{ message.tool_calls }}<｜tool▁calls▁begin｜>", "hermes"),
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
