"""Schemas that cannot be enforced: the message names the place and the reason in a sentence."""

import pytest

from inference_server.text.grammar import GrammarError, Grammars
from inference_server.text.schema_faults import located
from inference_server.text.tool_formats import Tool
from inference_server.text.tools.call_grammar import ReplyForm, reply_grammar
from tests.support.models.tiny_models import sentencepiece_tokenizer


@pytest.fixture(scope="module")
def grammars():
    tokenizer = sentencepiece_tokenizer()
    return Grammars(tokenizer, vocab_size=len(tokenizer))


def at_zip(pattern: str) -> dict:
    return {"type": "object", "properties": {"zip": {"type": "string", "pattern": pattern}}}


CASES = [
    (at_zip("^(?=a)b$"), "a pattern at /properties/zip/pattern that uses a look-ahead"),
    (at_zip("(?<!a/b)c"), "a pattern at /properties/zip/pattern that uses a look-ahead or look-behind"),
    (at_zip(r"(a)\1"), "a pattern at /properties/zip/pattern that uses a back-reference"),
    (at_zip(r"a\bb"), r"a pattern at /properties/zip/pattern that uses \b"),
    (at_zip("[a"), "a pattern at /properties/zip/pattern that is not a regular expression"),
    ({"items": {"anyOf": [{"type": "string"}, {"pattern": "(?!x)"}]}}, "at /items/anyOf/1/pattern"),
    ({"patternProperties": {"^(?!x/y)": {}}}, "at /patternProperties/^(?!x~1y) that uses a look-ahead"),
    ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "'uniqueItems' at /properties/a,"),
    ({"properties": {"a": {"if": {}, "then": {}}}}, "'if' and 'then' at /properties/a,"),
    ({"not": {"type": "string"}}, "'not' at its top level"),
    (
        {"$defs": {"x": {"oneOf": [{}, {}]}}, "$ref": "#/$defs/x"},
        "'oneOf' at /$defs/x, which cannot be enforced: use 'anyOf'",
    ),
    ({"items": {"type": "string", "format": "foo"}}, 'the format "foo" at /items/format'),
    ({"properties": {"a": {"type": "objekt"}}}, 'the type "objekt" at /properties/a/type'),
    ({"properties": {"q": {"$ref": "#/a/b"}}}, 'a reference to "#/a/b" at /properties/q/$ref'),
    ({"$ref": "https://example.org/s"}, "only references within it work"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "'minimum' is greater than 'maximum'"),
    ({"items": {"type": "integer", "minimum": -(10**300), "maximum": 10**300}}, "a limit at /items that is too large"),
    ({"type": "string", "minLength": -1}, "a wrong value at /minLength"),
    ({"const": "\ud800"}, "a number or a character that JSON cannot represent"),
    ({"minimum": float("inf")}, "a number or a character that JSON cannot represent"),
    ({"enum": []}, "allows no document at all"),
]


@pytest.mark.parametrize(("schema", "words"), CASES)
def test_what_cannot_be_enforced_is_named_by_its_place(grammars, schema, words):
    with pytest.raises(GrammarError) as caught:
        grammars.json_schema(schema)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["hermes", "qwen3_coder", "pythonic"])
def test_a_tools_pattern_is_named_by_its_place(grammars, form):
    tool = Tool("f", "", {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^a/(?=b)"}}})
    with pytest.raises(GrammarError) as caught:
        grammars.lark(reply_grammar(form, ReplyForm(tools=[tool]), grammars.literal))
    assert "at /properties/zip/pattern that uses a look-ahead" in str(located(caught.value.cause, tool.parameters))


@pytest.mark.parametrize(
    "wrong", [{"pattern": "(?=a)b"}, {"format": "f" * 50_000}, {"uniqueItems": True}, {"type": "t" * 9_999}]
)
def test_a_message_is_short_enough_for_a_status(grammars, wrong):
    with pytest.raises(GrammarError) as caught:
        grammars.json_schema({"properties": {"p" * 50_000: {"type": "string", **wrong}}})
    assert len(str(caught.value)) < 1_000
