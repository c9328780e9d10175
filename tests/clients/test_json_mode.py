"""JSON mode on the default model at temperature 1: replies parse and fit the schema, streamed or not."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

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
        "top_p": 1,  # with fewer tokens to draw from, the small model may repeat digits up to max_tokens
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


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Return eight threads that send requests, as many as the server has slots: a batch takes little longer than one."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture(scope="module")
def whole(api, pool) -> list[Future[requests.Response]]:
    """Ask for a complete reply to each schema."""
    return [pool.submit(ask, api, body(schema, seed=seed)) for seed, schema in enumerate(SCHEMAS, start=1)]


@pytest.fixture(scope="module")
def streamed(api, pool) -> list[Future[requests.Response]]:
    """Ask for a streamed reply to each schema."""
    return [pool.submit(ask, api, body(schema, seed=seed, stream=True)) for seed, schema in enumerate(SCHEMAS, 101)]


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_a_reply_fits_its_schema(whole, number):
    response = whole[number].result()
    assert response.status_code == 200, response.text
    assert fits(response.json()["result"]["response"], SCHEMAS[number]), response.text


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_a_streamed_reply_fits_its_schema(streamed, number):
    *events, done = streamed[number].result().content.decode().strip().split("\n\n")
    text = "".join(json.loads(event.removeprefix("data: "))["response"] for event in events)
    assert done == "data: [DONE]" and fits(json.loads(text), SCHEMAS[number]), text


@pytest.mark.parametrize("number", range(len(UNBOUNDED)))
def test_a_complete_reply_fits_an_unbounded_schema(stack, pool, number):
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": UNBOUNDED[number]}}
    messages = [{"role": "user", "content": "Make something up."}]
    fields = {"model": MODEL, "messages": messages, "temperature": 1, "response_format": given, "max_tokens": 200}
    url = f"http://{stack.http_address}/v1/chat/completions"

    def choice(seed):
        (choice,) = requests.post(url, json={**fields, "seed": seed}, timeout=110).json()["choices"]
        return choice

    for reply in pool.map(choice, range(1, 6)):
        if reply["finish_reason"] == "stop":
            assert fits(json.loads(reply["message"]["content"]), UNBOUNDED[number]), reply
        else:
            assert reply["finish_reason"] == "length"


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
