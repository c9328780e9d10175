"""JSON mode on the default model at temperature 1: replies parse and fit the schema, streamed or not."""

import json

import jsonschema_rs
import pytest
import requests

from tests.clients.conftest import ACCOUNT
from tests.clients.json_schemas import SCHEMAS, UNBOUNDED

pytestmark = pytest.mark.clients

MODEL = "@cf/meta/llama-2-7b-chat-int8"
MAX_TOKENS = 1500


def body(schema, **fields):
    given = {"type": "json_schema", "json_schema": schema}
    return {
        "prompt": "Make something up.",
        "temperature": 1,
        "response_format": given,
        "max_tokens": MAX_TOKENS,
        **fields,
    }


def ask(api, fields):
    return requests.post(f"{api}/accounts/{ACCOUNT}/ai/run/{MODEL}", json=fields, timeout=110)


def fits(document, schema):
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True).is_valid(document)


def test_there_are_fifty_schemas():
    assert len(SCHEMAS) == 50 and len({json.dumps(schema) for schema in SCHEMAS}) == 50


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_a_reply_fits_its_schema(api, number):
    response = ask(api, body(SCHEMAS[number], seed=number + 1))
    assert response.status_code == 200, response.text
    assert fits(response.json()["result"]["response"], SCHEMAS[number]), response.text


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_a_streamed_reply_fits_its_schema(api, number):
    response = ask(api, body(SCHEMAS[number], seed=number + 101, stream=True))
    *events, done = response.content.decode().strip().split("\n\n")
    text = "".join(json.loads(event.removeprefix("data: "))["response"] for event in events)
    assert done == "data: [DONE]" and fits(json.loads(text), SCHEMAS[number]), text


@pytest.mark.parametrize("number", range(len(UNBOUNDED)))
def test_a_complete_reply_fits_an_unbounded_schema(stack, number):
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": UNBOUNDED[number]}}
    fields = {"model": MODEL, "messages": [{"role": "user", "content": "Make something up."}], "temperature": 1}
    for seed in range(1, 6):
        wanted = {**fields, "response_format": given, "max_tokens": 200, "seed": seed}
        url = f"http://{stack.http_address}/v1/chat/completions"
        (choice,) = requests.post(url, json=wanted, timeout=110).json()["choices"]
        if choice["finish_reason"] == "stop":
            assert fits(json.loads(choice["message"]["content"]), UNBOUNDED[number]), choice
        else:
            assert choice["finish_reason"] == "length"


def test_json_object_mode_replies_are_objects(api):
    response = ask(api, {"prompt": "hi", "response_format": {"type": "json_object"}, "max_tokens": 300, "seed": 3})
    if response.status_code == 200:
        assert isinstance(response.json()["result"]["response"], dict)
    else:
        assert response.json()["errors"][0]["code"] == 5024


def test_a_cut_reply_is_an_error(api):
    response = ask(api, body(SCHEMAS[20], max_tokens=2))
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5024)
    assert "JSON Mode couldn't be met" in response.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {}}, "not"),
        ({"type": "object", "dependentSchemas": {}}, "dependentSchemas"),
    ],
)
def test_an_unsupported_keyword_is_named(api, schema, keyword):
    response = ask(api, body(schema))
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5006)
    assert f"'{keyword}'" in response.json()["errors"][0]["message"]
