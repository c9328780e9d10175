"""Grammars over the default model's tokenizer: allowed tokens, and refused schemas."""

import json
import random

import pytest

from inference_server.text.grammar import GrammarError, Grammars, parsed_schema
from inference_server.text.tool_calls import CallParser
from inference_server.text.tool_formats import MARKERS, Tool
from inference_server.text.tools.call_grammar import MAX_CALLS, ReplyForm, reply_grammar
from tests.support.fakes import default_tokenizer
from tests.support.models.tiny_models import sentencepiece_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece_tokenizer()


@pytest.fixture(scope="module")
def byte_level():
    """Return the default model's tokenizer and its grammars. The tiny one has no bytes of DeepSeek's markers."""
    tokenizer = default_tokenizer()
    return tokenizer, Grammars(tokenizer, vocab_size=len(tokenizer))


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, vocab_size=len(tokenizer))


def drawn(constraint, tokenizer, seed, *, most=3000):
    """Return a reply of random allowed tokens, until an end token is drawn or only end tokens are allowed."""
    dice = random.Random(seed)
    ids = []
    while not constraint.is_complete and len(ids) < most:
        token_id = dice.choice(constraint.allowed().nonzero()[0].tolist())
        if token_id == tokenizer.eos_token_id:
            break
        constraint.accept(token_id)
        ids.append(token_id)
    return tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(5))
def test_any_allowed_reply_fits_the_schema(grammars, tokenizer, seed):
    reply = json.loads(drawn(grammars.json_schema(SCHEMA), tokenizer, seed))
    assert len(reply["city"]) <= 5 and 1 <= reply["count"] <= 9


def test_white_space_is_limited(grammars, tokenizer):
    constraint = grammars.json_schema({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 1})
    bracket, space = tokenizer.convert_tokens_to_ids(["<0x5B>", "<0x20>"])
    constraint.accept(bracket)
    for _ in range(20):
        if not constraint.allowed()[space]:
            return
        constraint.accept(space)
    pytest.fail("spaces are allowed for ever")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True, "items": {}}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
    ],
)
def test_an_unsupported_keyword_is_named(grammars, schema, named):
    with pytest.raises(GrammarError, match=f"'{named}'"):
        grammars.json_schema(schema)


def test_the_schema_true_allows_any_document(grammars, tokenizer):
    assert grammars.json_schema(parsed_schema("true")).allowed().any()


@pytest.mark.parametrize("schema", ["{", "[]", "false", '"string"', '{"type": "nothing"}', '{"$ref": "#/nowhere"}'])
def test_an_invalid_schema_is_refused(grammars, schema):
    with pytest.raises(GrammarError):
        grammars.json_schema(parsed_schema(schema))


ARGUMENTS = {
    "type": "object",
    "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "properties": {
        "unit": {"enum": ["C", "F"]},
        "city": {"type": "string", "maxLength": 5},
        "zip": {"type": "string", "pattern": "^[0-9]{3}$"},
        "count": {"$ref": "#/$defs/n"},
        "ok": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 3}, "maxItems": 2},
        "note": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
    },
    "required": ["city", "zip", "count"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
OFFERED = [Tool("weather", "", ARGUMENTS), Tool('odd "name"', "", NOTHING)]


def reply_to(byte_level, tool_format, form, seed, place):
    """Return the text and calls of a reply of random allowed tokens, and whether it is complete."""
    tokenizer, grammars = byte_level
    constraint = grammars.lark(reply_grammar(tool_format, form, grammars.literal))
    text = drawn(constraint, tokenizer, seed)
    parser = CallParser(tool_format, form.tools, random.Random(1), place)
    first, last = parser.push(text), parser.finish()
    return first[0] + last[0], [*first[1], *last[1]]


@pytest.mark.parametrize("form", MARKERS)
@pytest.mark.parametrize("seed", range(2))
def test_a_forced_call_is_parsed_again_with_the_types_of_its_schema(byte_level, form, seed):
    text, calls = reply_to(byte_level, form, ReplyForm(tools=OFFERED[:1]), seed, "only")
    assert text == "" and 1 <= len(calls) <= MAX_CALLS
    for call in calls:
        given = json.loads(call.arguments)
        assert 1 <= given["count"] <= 9 and len(given["city"]) <= 5 and len(given["zip"]) == 3
        assert {"city", "count", "zip"} <= set(given) <= set(ARGUMENTS["properties"])
        assert isinstance(given.get("ok", True), bool) and isinstance(given.get("tags", []), list)


@pytest.mark.parametrize("form", MARKERS)
def test_without_parallel_calls_a_forced_reply_is_one_call(byte_level, form):
    wanted = ReplyForm(tools=OFFERED[1:], is_parallel=False)
    text, (call,) = reply_to(byte_level, form, wanted, 1, "only")
    assert (text, call.name) == ("", 'odd "name"')


@pytest.mark.parametrize("form", sorted(set(MARKERS) - {"llama3"}))
def test_a_reply_is_a_document_or_calls(byte_level, form):
    document = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    wanted = ReplyForm(tools=OFFERED[:1], beside="document", document=document)
    kinds = set()
    for seed in range(6):
        text, calls = reply_to(byte_level, form, wanted, seed, "beginning")
        kinds.add("calls" if calls else "document")
        assert bool(text) != bool(calls)
        assert not text or len(json.loads(text)) == 2
    assert kinds


@pytest.mark.parametrize("form", MARKERS)
def test_free_text_may_end_with_calls_of_allowed_tools_alone(byte_level, form):
    tokenizer, grammars = byte_level
    markers = MARKERS[form]
    wanted = ReplyForm(tools=OFFERED[:1], beside="text", is_parallel=False)
    grammar = reply_grammar(form, wanted, grammars.literal)
    calls = drawn(grammars.lark(reply_grammar(form, ReplyForm(tools=OFFERED[:1]), grammars.literal)), tokenizer, 1)
    for before in ("",) if markers.is_optional else ("", "Let me < see. "):
        constraint = grammars.lark(grammar)
        for token_id in tokenizer.encode(before + calls.split("weather")[0], add_special_tokens=False):
            assert constraint.allowed()[token_id]
            constraint.accept(token_id)
        named = [tokenizer.decode([token_id]) for token_id in constraint.allowed().nonzero()[0]]
        assert named and all("weather".startswith(piece.strip()) or piece.startswith("weather") for piece in named)


def test_references_within_a_tools_schema_point_into_it(grammars):
    parameters = {"$defs": {"n": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/n"}}}
    text = reply_grammar("hermes", ReplyForm(tools=[Tool("count", "", parameters)]), grammars.literal)
    assert grammars.lark(text).allowed().any()


def test_a_pattern_with_a_backslash_before_a_slash_stays_within_its_expression(byte_level):
    parameters = {"properties": {"p": {"type": "string", "pattern": r"^a\\/b\/c/d$"}}, "required": ["p"]}
    _, (call,) = reply_to(byte_level, "qwen3_coder", ReplyForm(tools=[Tool("f", "", parameters)]), 1, "only")
    assert json.loads(call.arguments) == {"p": r"a\/b/c/d"}


@pytest.mark.parametrize("seed", range(3))
def test_a_pythonic_call_may_have_any_optional_arguments(byte_level, seed):
    tool = Tool("f", "", {"properties": {f"p{number}": {"type": "boolean"} for number in range(6)}})
    text, calls = reply_to(byte_level, "pythonic", ReplyForm(tools=[tool]), seed, "only")
    assert text == "" and calls
    assert all(set(json.loads(call.arguments)) <= set(tool.parameters["properties"]) for call in calls)


def test_the_grammar_of_a_pythonic_call_grows_linearly_with_its_arguments(byte_level):
    sizes = []
    for count in (500, 1000):
        tool = Tool("f", "", {"properties": {f"p{number:04}": {} for number in range(count)}})
        sizes.append(len(reply_grammar("pythonic", ReplyForm(tools=[tool]), byte_level[1].literal)))
    assert sizes[1] < 2.2 * sizes[0]
