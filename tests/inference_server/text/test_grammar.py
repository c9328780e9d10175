"""Grammars over the default model's tokenizer: allowed tokens, and refused schemas."""

import json
import random

import pytest

from inference_server.text import tool_formats as tools
from inference_server.text.grammar import GrammarError, Grammars
from inference_server.text.tool_calls import CallParser
from tests.support.tiny_models import sentencepiece_tokenizer

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
def grammars(tokenizer):
    return Grammars(tokenizer, vocab_size=len(tokenizer))


def drawn(constraint, tokenizer, seed, *, most=400):
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
    reply = json.loads(drawn(grammars.json_schema(json.dumps(SCHEMA)), tokenizer, seed))
    assert len(reply["city"]) <= 5 and 1 <= reply["count"] <= 9


def test_white_space_is_limited(grammars, tokenizer):
    constraint = grammars.json_schema('{"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 1}')
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
        grammars.json_schema(json.dumps(schema))


def test_the_schema_true_allows_any_document(grammars, tokenizer):
    assert grammars.json_schema("true").allowed().any()


@pytest.mark.parametrize("schema", ["{", "[]", "false", '"string"', '{"type": "nothing"}', '{"$ref": "#/nowhere"}'])
def test_an_invalid_schema_is_refused(grammars, schema):
    with pytest.raises(GrammarError):
        grammars.json_schema(schema)


@pytest.mark.parametrize("form", ["hermes", "llama3", "mistral"])
def test_a_forced_call_is_parsed_again(grammars, tokenizer, form):
    offered = [tools.Tool("weather", "", SCHEMA), tools.Tool("clock", "", {})]
    for seed in range(3):
        text = drawn(grammars.lark(tools.call_grammar(form, offered[:1], grammars.literal)), tokenizer, seed)
        parser = CallParser(form, ["weather"], random.Random(1))
        calls = (*parser.push(text)[1], *parser.finish()[1])
        assert json.loads(calls[0].arguments)["count"] >= 1


def test_references_within_a_tools_schema_point_into_it(grammars):
    parameters = {"$defs": {"n": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/n"}}}
    text = tools.call_grammar("hermes", [tools.Tool("count", "", parameters)], grammars.literal)
    assert grammars.lark(text).allowed().any()
