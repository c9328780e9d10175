"""Request bodies: accepted forms, and the message about each wrong field.

tests/tailrace_shared/test_request_fields.py has the ranges of the sampling parameters.
"""

import json

import pytest

from http_bridge.errors import ApiError
from http_bridge.protocol.run_body import Tool, ToolCall, Turn
from http_bridge.protocol.validation.documents import load
from tailrace_shared.request_fields import SAMPLING_FIELDS
from tests.http_bridge.conftest import BODIES

UNMATCHED = "oneOf at '/' not met, 0 matches: "
SURROGATE = "contains half of a surrogate pair, which is not a character"


def parse_body(data):
    return BODIES.run(load(data, 10_000_000), model="m")


def parse(**body):
    return parse_body(json.dumps(body).encode())


def problem(**body):
    """Return the message about the body's own form. The message about the other form precedes it."""
    with pytest.raises(ApiError) as caught:
        parse(**body)
    assert (caught.value.status, caught.value.code) == (400, 5006)
    message = caught.value.description.removeprefix("Bad input: Error: ").removeprefix(UNMATCHED)
    other = "prompt" if body.get("messages") is not None else "messages"
    return message.removeprefix(f"required properties at '/' are '{other}', ")


@pytest.mark.parametrize("name", [field.name for field in SAMPLING_FIELDS])
@pytest.mark.parametrize(("value", "kind"), [("1", "string"), (True, "boolean"), ([1], "array"), ({}, "object")])
def test_other_types_are_not_numbers(name, value, kind):
    assert problem(prompt="hi", **{name: value}).startswith(f"Type mismatch of '/{name}', '{kind}' not in ")


@pytest.mark.parametrize("name", ["max_tokens", "top_k", "seed"])
def test_integer_may_be_written_as_a_float_but_not_have_a_fraction(name):
    value = parse(prompt="hi", **{name: 5.0}).sampling[name]
    assert (value, type(value)) == (5, int)
    assert problem(prompt="hi", **{name: 5.5}) == f"Type mismatch of '/{name}', 'number' not in 'integer'"


def test_tiny_temperature_is_accepted():
    assert parse(prompt="hi", temperature=1e-08).sampling["temperature"] == 1e-08


def test_max_tokens_has_no_upper_limit_but_that_of_the_contract():
    assert parse(prompt="hi", max_tokens=10**30).sampling["max_tokens"] == 2**32 - 1
    assert parse_body(b'{"prompt":"hi","max_tokens":1e30}').sampling["max_tokens"] == 2**32 - 1


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity"])
def test_words_that_are_not_json_numbers_are_refused(word):
    with pytest.raises(ApiError, match="is not a JSON number"):
        parse_body(b'{"prompt":"hi","temperature":%s}' % word)


@pytest.mark.parametrize("digits", [b"9" * 33, b"9" * 10_000, b"1e999", b"-1e999"])
@pytest.mark.parametrize("name", [b"temperature", b"seed", b"top_k"])
def test_huge_numbers_are_refused_like_others(name, digits):
    with pytest.raises(ApiError, match=f"'/{name.decode()}'"):
        parse_body(b'{"prompt":"hi","%s":%s}' % (name, digits))


@pytest.mark.parametrize("seed", [10**18 + 1, 2**63 - 1, -(10**18) - 1, -(2**63)])
def test_long_seeds_of_openai_keep_all_digits(seed):
    data = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"seed":%d}' % seed
    assert BODIES.chat(load(data, 10_000)).sampling["seed"] == seed % 2**64


@pytest.mark.parametrize("seed", [2**63, 2**64, -(2**63) - 1, -(2**64)])
def test_seeds_beyond_the_range_of_openai_are_refused(seed):
    data = b'{"model":"m","prompt":"hi","seed":%d}' % seed
    with pytest.raises(ApiError, match="'/seed' must be "):
        BODIES.completion(load(data, 10_000))


def test_long_integers_in_tool_arguments_keep_all_digits():
    call = {"name": "f", "arguments": {"id": 12345678901234567890}}
    turns = parse(messages=[{"role": "assistant", "tool_calls": [call]}]).turns
    assert turns[0].tool_calls[0].arguments == '{"id": 12345678901234567890}'


def test_null_is_absent_and_unknown_keys_are_ignored():
    names = ["messages", "raw", "stream", "max_tokens", "temperature", "top_k", "seed", "stop", "options"]
    assert parse(prompt="hi", **dict.fromkeys(names), model="x", lora=None) == parse(prompt="hi")


def test_all_wrong_fields_are_reported_together():
    message = problem(prompt="hi", top_k=51, stream="yes")
    assert "'/top_k' must be <= 50" in message and "Type mismatch of '/stream', 'string' not in 'boolean'" in message


def test_a_body_of_neither_form_names_the_required_fields():
    assert problem(top_k=51) == ("required properties at '/' are 'prompt', required properties at '/' are 'messages'")


def test_the_message_has_workers_ais_wording():
    with pytest.raises(ApiError) as caught:
        parse(messages=[{"role": "user", "content": 5}, {}])
    assert caught.value.description == (
        "Bad input: Error: oneOf at '/' not met, 0 matches: required properties at '/' are 'prompt', Type mismatch of "
        "'/messages/0/content', 'integer' not in 'string' or 'array', required properties at '/messages/1' are "
        "'role,content'"
    )


def test_lora_names_an_adapter():
    assert [parse(prompt="hi", lora=name).adapter for name in ("mine", "", None)] == ["mine", "", ""]
    assert "'/lora' must be at most 256 characters" in problem(prompt="hi", lora="x" * 257)


def test_an_empty_body_is_missing():
    with pytest.raises(ApiError, match="Request is missing headers or body: body") as caught:
        parse_body(b"")
    assert (caught.value.status, caught.value.code) == (400, 3003)


def test_only_the_first_eight_wrong_fields_are_reported():
    message = problem(messages=[1] * 1_000_000)
    assert message.startswith("'/messages' must hold at most 1024 items, Type mismatch of '/messages/0'")
    assert message.endswith("'/messages/6', 'integer' not in 'object', and more")
    assert message.count("Type mismatch") == 7


def test_prompt_must_be_a_string_that_is_not_empty():
    assert problem(prompt="") == "'/prompt' must not be empty"
    assert problem(prompt=5) == "Type mismatch of '/prompt', 'integer' not in 'string'"


def test_messages_take_precedence_over_prompt():
    body = parse(prompt="no", messages=[{"role": "user", "content": "yes"}])
    assert (body.prompt, body.turns) == (None, (Turn(role="user", content="yes"),))


def test_content_may_be_text_parts():
    parts = [{"type": "text", "text": "New "}, {"type": "text", "text": "York"}]
    assert parse(messages=[{"role": "user", "content": parts}]).turns == (Turn(role="user", content="New York"),)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image_url", "text": ""},
            "'/messages/0/content/0' (image_url) is a picture, and the model m reads text only",
        ),
        ({"type": "new"}, "'/messages/0/content/0' has the unknown type new, and the model m reads text only"),
        ({}, "required properties at '/messages/0/content/0' are 'type,text'"),
        ({"type": "text"}, "required properties at '/messages/0/content/0' are 'type,text'"),
        ({"type": "text", "text": 1}, "Type mismatch of '/messages/0/content/0/text', 'integer' not in 'string'"),
        ("hi", "Type mismatch of '/messages/0/content/0', 'string' not in 'object'"),
    ],
)
def test_other_parts_are_named(part, message):
    assert problem(messages=[{"role": "user", "content": [part]}]) == message


@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_content_of_an_assistant_or_tool_may_be_empty(role):
    assert parse(messages=[{"role": role, "content": None}, {"role": role}]).turns == (Turn(role=role),) * 2


@pytest.mark.parametrize(
    "call",
    [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kyoto"}'}},
        {"id": "1", "name": "weather", "arguments": {"city": "Kyoto"}},
    ],
)
def test_tool_calls_of_earlier_turns_have_either_shape(call):
    (turn,) = parse(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}]).turns
    assert turn.tool_calls == (ToolCall("1", "weather", '{"city": "Kyoto"}'),)


@pytest.mark.parametrize("wrap", [lambda tool: tool, lambda tool: {"type": "function", "function": tool}])
def test_tools_have_either_shape(wrap):
    tool = {"name": "weather", "description": "Tells it", "parameters": {"type": "object"}}
    body = parse(messages=[{"role": "user", "content": "hi"}], tools=[wrap(tool)])
    assert body.tools == (Tool("weather", "Tells it", '{"type": "object"}'),)


@pytest.mark.parametrize("schema", [{"type": "object"}, {"name": "x", "schema": {"type": "object"}, "strict": True}])
def test_a_json_schema_has_either_spelling(schema):
    given = {"type": "json_schema", "json_schema": schema}
    assert parse(prompt="hi", response_format=given).json_schema == '{"type": "object"}'


def test_a_json_object_has_no_schema():
    assert parse(prompt="hi", response_format={"type": "json_object"}).json_schema == ""
    assert parse(prompt="hi", response_format={"type": "text"}).json_schema is None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "'/messages' must hold at least 1 items"),
        ("hi", "Type mismatch of '/messages', 'string' not in 'array'"),
        ([{"role": "user"}], "required properties at '/messages/0' are 'role,content'"),
        (
            [{"role": "user", "content": None}],
            "Type mismatch of '/messages/0/content', 'null' not in 'string' or 'array'",
        ),
        ([{"content": "hi"}], "required properties at '/messages/0' are 'role,content'"),
        ([{"role": "", "content": "hi"}], "'/messages/0/role' must not be empty"),
        ([{"role": "x" * 65, "content": "hi"}], "'/messages/0/role' must be at most 64 characters long"),
        (
            [{"role": "user", "content": 1}],
            "Type mismatch of '/messages/0/content', 'integer' not in 'string' or 'array'",
        ),
    ],
)
def test_wrong_messages_are_named(messages, message):
    assert problem(messages=messages) == message


def test_stop_is_a_string_or_an_array_of_strings():
    assert parse(prompt="hi", stop="\n").stop == ("\n",)
    assert parse(prompt="hi", stop=["a", "b"]).stop == ("a", "b")
    assert parse(prompt="hi", stop=[]).stop == ()


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ("", "'/stop' must not be empty"),
        ("x" * 257, "'/stop' must be at most 256 characters long"),
        (["a", ""], "'/stop/1' must not be empty"),
        (["a"] * 17, "'/stop' must hold at most 16 items"),
        ([1], "Type mismatch of '/stop/0', 'integer' not in 'string'"),
        (1, "Type mismatch of '/stop', 'integer' not in 'string' or 'array'"),
    ],
)
def test_wrong_stop_strings_are_named(stop, message):
    assert problem(prompt="hi", stop=stop) == message


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"prompt": "\ud800"}, "/prompt"),
        ({"prompt": "hi", "stop": ["\udfff"]}, "/stop/0"),
        ({"messages": [{"role": "\ud800", "content": "hi"}]}, "/messages/0/role"),
        ({"messages": [{"role": "user", "content": "a\udc00"}]}, "/messages/0/content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
            "/messages/0/content/0/text",
        ),
    ],
)
def test_half_a_surrogate_pair_is_named(body, path):
    assert problem(**body) == f"'{path}' {SURROGATE}"


def test_whole_surrogate_pair_is_a_character():
    assert parse_body(b'{"prompt": "\\ud83d\\ude00"}').prompt == "\U0001f600"


def test_an_invalid_item_near_the_end_is_reported_too():
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}] * 5000 + [1]}
    assert problem(messages=[message]) == ("Type mismatch of '/messages/0/content/5000', 'integer' not in 'object'")


def deep(levels, inside='"x"'):
    """Return the JSON text of nested objects."""
    return '{"a":' * levels + inside + "}" * levels


def test_a_conversation_has_a_configurable_number_of_messages():
    message = {"role": "user", "content": "hi"}
    assert len(parse(messages=[message] * 1024).turns) == 1024
    assert problem(messages=[message] * 1025) == "'/messages' must hold at most 1024 items"


def test_at_most_128_tools_are_accepted():
    tools = [{"name": f"t{index}"} for index in range(129)]
    given = {"messages": [{"role": "user", "content": "hi"}]}
    assert len(parse(**given, tools=tools[:128]).tools) == 128
    assert problem(**given, tools=tools) == "'/tools' must hold at most 128 items"


def test_a_json_schema_may_be_nested_32_deep():
    for levels, is_taken in ((32, True), (33, False)):
        schema = json.loads(deep(levels))
        wrapped = {"type": "function", "function": {"name": "t", "parameters": schema}}
        given = {
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"name": "t", "parameters": schema}, wrapped],
        }
        form = {"response_format": {"type": "json_schema", "json_schema": schema}}
        if is_taken:
            assert len(parse(**given).tools) == 2 and parse(prompt="hi", **form).json_schema
            continue
        assert problem(**given) == (
            "'/tools/0/parameters' must be nested at most 32 deep, "
            "'/tools/1/function/parameters' must be nested at most 32 deep"
        )
        assert problem(prompt="hi", **form) == "'/response_format/json_schema' must be nested at most 32 deep"


@pytest.mark.parametrize("levels", [128, 300, 900, 100_000])
@pytest.mark.parametrize("text", ["", "\\ud83d\\ude00"])
def test_a_body_nested_too_deeply_is_reported(levels, text):
    for nested in ("[" * levels + "]" * levels, deep(levels)):
        with pytest.raises(ApiError, match="'/' must be nested at most 128 deep") as caught:
            parse_body(f'{{"prompt": "hi{text}", "x": {nested}}}'.encode())
        assert (caught.value.status, caught.value.code) == (400, 5006)
    assert parse_body(f'{{"prompt": "hi{text}", "x": {deep(127)}}}'.encode())


def test_arguments_of_a_tool_call_have_the_nesting_limit_of_a_body():
    for levels in (129, 100_000):
        call = {"name": "t", "arguments": deep(levels)}
        assert problem(messages=[{"role": "assistant", "tool_calls": [call]}]) == (
            "'/messages/0/tool_calls/0/arguments' must be a JSON object as text, nested at most 128 deep"
        )


def test_reject_if_busy_is_in_options():
    assert parse(prompt="hi", options={"rejectIfBusy": True, "other": 1}).reject_if_busy
    assert problem(prompt="hi", options=[]) == "Type mismatch of '/options', 'array' not in 'object'"
    assert problem(prompt="hi", options={"rejectIfBusy": 1}).startswith("Type mismatch of '/options/rejectIfBusy'")


def test_byte_order_mark_is_skipped():
    assert parse_body(b'\xef\xbb\xbf{"prompt": "hi"}').prompt == "hi"


def test_the_place_of_a_json_error_is_reported():
    with pytest.raises(ApiError, match=r"the body is not JSON \(line 2, column 1\)"):
        parse_body(b'{"prompt":\n}')
