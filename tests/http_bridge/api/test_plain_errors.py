"""The plain words of errors in a response header; the body has Workers AI's wording."""

from urllib.parse import unquote

import pytest

from http_bridge.errors import PLAIN_HEADER
from http_bridge.protocol.grpc_errors import _not_ready
from tests.http_bridge.conftest import MODEL, RUN_URL

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "The body needs prompt or messages."),
        ([1], "The body must be an object, not a list."),
        ({"prompt": 1}, "prompt must be a string, not a whole number."),
        ({"prompt": ""}, "prompt must not be empty."),
        ({"messages": []}, "messages must not be empty."),
        ({"messages": [{"role": "user"}]}, "messages[0] needs content."),
        ({"prompt": "x", "temperature": 9, "top_k": 0}, "temperature must be at most 5; top_k must be at least 1."),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens must be a whole number, not a number."),
        ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty must be above 0."),
        (
            {"prompt": "x", "response_format": {"type": "é"}},
            "response_format.type must be text, json_object, json_schema, not é.",
        ),
        ({"prompt": "x", "stop": ["a"] * 99}, "stop must have at most 16 items."),
    ],
)
async def test_a_refused_field_is_described_in_plain_words(bridge, body, sentence):
    response = await bridge.client.post(RUN_URL, json=body)
    assert (response.status_code, unquote(response.headers[PLAIN_HEADER])) == (400, sentence)
    assert response.json()["errors"][0]["message"].startswith("AiError: AiError: Bad input: Error: ")


async def test_openais_routes_have_the_header_too(bridge):
    response = await bridge.client.post("/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, "top_p": 3})
    assert response.headers[PLAIN_HEADER] == "top_p must be at most 1."
    assert response.json()["error"]["message"] == "Bad input: Error: '/top_p' must be <= 1"


async def test_a_long_name_does_not_make_a_long_header(bridge):
    response = await bridge.client.post(RUN_URL, json={"prompt": "x", "response_format": {"type": "é\n" * 5000}})
    assert len(response.headers[PLAIN_HEADER]) < 7000 and "\n" not in response.headers[PLAIN_HEADER]


def test_an_error_about_all_models_names_none():
    assert _not_ready("").description.startswith("The models are not ready: the server is still loading")
    assert _not_ready("@cf/a/b").description.startswith("The model @cf/a/b is not ready: it is still loading")
