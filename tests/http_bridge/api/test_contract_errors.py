"""Every error of Workers AI that can occur here, on every route where it can occur: status, code, sentence, envelope.

The fake server sends the errors of the model's server. All other errors are provoked.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import pytest

MODEL = "@cf/meta/llama-2-7b-chat-int8"
ACCOUNT = "/client/v4/accounts/acc"
PROMPT = {"prompt": "hi"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
Code = grpc.StatusCode
WINDOW = "The estimated number of input and maximum output tokens ({}) exceeded this model context window limit ({})."


@dataclass(frozen=True)
class Ask:
    """A route's requests: the URL, and the JSON around the fields of a run."""

    url: str
    wrap: Callable[[dict], dict]
    fields: dict
    headers: dict = field(default_factory=dict)


RUN_HEADERS = {"cf-consn-model-id": MODEL}
MINIFLARE = {"mf-url": "https://workers-binding.ai/run?version=3", "mf-header-cf-consn-model-id": MODEL}
ROUTES = {
    "run": Ask(f"{ACCOUNT}/ai/run/{MODEL}", lambda body: body, PROMPT),
    "generic": Ask(f"{ACCOUNT}/ai/run", lambda body: {"model": MODEL, "input": body}, PROMPT),
    "chat": Ask(f"{ACCOUNT}/ai/v1/chat/completions", lambda body: {"model": MODEL, **body}, CHAT),
    "completions": Ask("/v1/completions", lambda body: {"model": MODEL, **body}, PROMPT),
    "binding": Ask("/run?version=3", lambda body: {"inputs": body, "options": {}}, PROMPT, RUN_HEADERS),
    "miniflare": Ask("/", lambda body: {"inputs": body, "options": {}}, PROMPT, MINIFLARE),
    "wrangler": Ask(f"{ACCOUNT}/ai/run/proxy", lambda body: {"inputs": body, "options": {}}, PROMPT, RUN_HEADERS),
}
CLOUDFLARE_STATUSES = {5007: 400, 5028: 400, 5021: 413, 9106: 400}
CLOUDFLARES = ("run", "generic", "binding", "miniflare", "wrangler")
OPENAIS = ("chat", "completions")


def error_of(route: str, response) -> tuple[int, int, str]:
    """Return status, code and sentence, after checking the route's envelope and the bare content type."""
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    request_id = response.headers["cf-ai-req-id"]
    if route in ("binding", "miniflare", "wrangler"):
        assert set(body) == {"name", "internalCode", "httpCode", "message", "description", "requestId"}
        assert (body["name"], body["httpCode"], body["requestId"]) == ("AiError", response.status_code, request_id)
        return response.status_code, body["internalCode"], body["description"]
    (error,) = body["errors"]
    sentence = error["message"].removeprefix("AiError: AiError: ").removesuffix(f" ({request_id})")
    assert (body["success"], body["result"], body["messages"]) == (False, {}, [])
    assert error["message"] == f"AiError: AiError: {sentence} ({request_id})"
    assert ("error" in body) == (route in OPENAIS)
    if route in OPENAIS:
        # tests/http_bridge/api/test_openai_errors.py has the statuses and codes of OpenAI.
        return CLOUDFLARE_STATUSES.get(error["code"], response.status_code), error["code"], sentence
    return response.status_code, error["code"], sentence


async def ask(bridge, route: str, fields: dict | None = None, *, content: bytes | None = None, **headers: str):
    way = ROUTES[route]
    body = json.dumps(way.wrap({**way.fields, **(fields or {})})).encode() if content is None else content
    return await bridge.client.post(way.url, content=body, headers={**way.headers, **headers})


SERVERS = [
    # Cloudflare removed the default model.
    (
        5028,
        400,
        "This model was deprecated on 2026-05-30. Please use an alternative model. No server here hosts it: accept its licence "
        f"on https://huggingface.co/meta-llama/Llama-2-7b-chat-hf and set HF_TOKEN, then `tailrace serve {MODEL}` serves it; "
        f"the models here are {MODEL}, @hf/other/second.",
        Code.NOT_FOUND,
        "UNKNOWN_MODEL",
        {},
    ),
    (
        5021,
        413,
        WINDOW.format(2049, 2048) + " The prompt alone has 2049 tokens.",
        Code.INVALID_ARGUMENT,
        "PROMPT_TOO_LONG",
        {"prompt_tokens": "2049", "context_length": "2048"},
    ),
    (
        5021,
        413,
        WINDOW.format(42481, 32000) + " 42225 are in the prompt, and max_tokens is 256.",
        Code.INVALID_ARGUMENT,
        "NO_ROOM_FOR_REPLY",
        {"prompt_tokens": "42225", "max_tokens": "256", "window": "32000"},
    ),
    (3040, 429, "Capacity temporarily exceeded, please try again.", Code.RESOURCE_EXHAUSTED, "CAPACITY_EXCEEDED", {}),
    (3021, 429, "rate limiting: inference request per min rate reached", Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", {}),
    (3006, 413, "Request is too large", Code.RESOURCE_EXHAUSTED, "", {}),
    (3007, 408, "Request timeout", Code.DEADLINE_EXCEEDED, "", {}),
    (7009, 503, "Upstream service unavailable", Code.UNAVAILABLE, "SERVER_STOPPING", {}),
]


@pytest.mark.parametrize(("code", "status", "sentence", "grpc_code", "reason", "metadata"), SERVERS)
async def test_refusals_of_the_server_have_their_statuses_and_codes(
    bridge, servicer, code, status, sentence, grpc_code, reason, metadata
):
    servicer.script = lambda reply: reply.refuse(grpc_code, reason, **metadata)
    for route in ROUTES:
        for stream in (False, True):
            answer = error_of(route, await ask(bridge, route, {"stream": stream}))
            assert (route, answer) == (route, (status, code, sentence))


FIELDS = [
    ({"top_p": 1.5}, "'/top_p' must be <= 1"),
    ({"temperature": -1}, "'/temperature' must be >= 0"),
    ({"max_tokens": "many"}, "Type mismatch of '/max_tokens', 'string' not in 'integer'"),
    ({"response_format": {"type": "yaml"}}, "enum yaml not in text,json_object,json_schema at '/response_format/type'"),
]


@pytest.mark.parametrize(("fields", "problem"), FIELDS)
async def test_a_field_out_of_its_range_is_5006(bridge, servicer, fields, problem):
    for route in ROUTES:
        status, code, sentence = error_of(route, await ask(bridge, route, fields))
        assert (route, status, code) == (route, 400, 5006)
        assert sentence.startswith("Bad input: Error: ") and problem in sentence
    assert not servicer.requests


async def test_a_body_of_neither_form_names_the_missing_fields(bridge, servicer):
    bad = {"prompt": None, "messages": [{"role": "user", "content": 5}, {}]}
    sentence = (
        "Bad input: Error: oneOf at '/' not met, 0 matches: required properties at '/' are 'prompt', "
        "Type mismatch of '/messages/0/content', 'integer' not in 'string' or 'array', "
        "required properties at '/messages/1' are 'role,content'"
    )
    for route in CLOUDFLARES:
        assert (route, error_of(route, await ask(bridge, route, bad))) == (route, (400, 5006, sentence))
    assert not servicer.requests


async def test_a_request_without_a_body_is_3003(bridge, servicer):
    for route in ROUTES:
        answer = error_of(route, await ask(bridge, route, content=b""))
        assert (route, answer) == (route, (400, 3003, "Request is missing headers or body: body"))
    assert not servicer.requests


async def test_a_binding_without_its_model_is_3003(bridge, servicer):
    for route in ("binding", "wrangler"):
        way = ROUTES[route]
        answer = error_of(route, await bridge.client.post(way.url, json=way.wrap(way.fields)))
        assert (route, answer) == (route, (400, 3003, "Request is missing headers or body: cf-consn-model-id"))
    assert not servicer.requests


async def test_a_request_that_is_too_large_is_3006(start_bridge, servicer):
    bridge = await start_bridge(max_body_bytes=1000)
    for route in ROUTES:
        status, code, sentence = error_of(route, await ask(bridge, route, {"prompt": "x" * 1000}))
        assert (route, status, code) == (route, 413, 3006)
        assert sentence.startswith("Request is too large")
    assert not servicer.requests


async def test_a_request_that_takes_too_long_is_3007(start_bridge, servicer):
    servicer.script = lambda reply: reply.forever()
    bridge = await start_bridge(request_timeout_seconds=0.2)
    answers = await asyncio.gather(*(ask(bridge, route) for route in ROUTES))
    for route, response in zip(ROUTES, answers, strict=True):
        assert (route, error_of(route, response)) == (route, (408, 3007, "Request timeout"))


async def test_lora_is_5005(bridge, servicer):
    for route in CLOUDFLARES:
        answer = error_of(route, await ask(bridge, route, {"lora": "my-finetune"}))
        assert (route, answer) == (route, (405, 5005, f"The model {MODEL} does not support LoRa inference"))
    assert not servicer.requests


async def test_a_name_that_no_model_can_have_is_3042(bridge, servicer):
    for route, response in (
        ("run", await bridge.ask(url=f"{ACCOUNT}/ai/run/a%07b")),
        ("generic", await bridge.ask({"model": "a\ab", "input": PROMPT}, url=f"{ACCOUNT}/ai/run")),
        ("chat", await bridge.ask({"model": "a\ab", **CHAT}, url="/v1/chat/completions")),
        ("binding", await ask(bridge, "binding", **{"cf-consn-model-id": "a\tb"})),
    ):
        assert error_of(route, response) == (404, 3042, "The model name is invalid")
    assert not servicer.requests


async def test_a_document_cut_by_max_tokens_is_an_error(bridge, servicer):
    async def half(reply):
        await reply.accept()
        await reply.say('{"a":')
        await reply.complete()

    servicer.script = half
    for route in CLOUDFLARES:
        answer = error_of(route, await ask(bridge, route, {"response_format": {"type": "json_object"}}))
        assert (route, answer) == (route, (400, 5024, "JSON Mode couldn't be met"))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000])
async def test_a_number_beyond_the_range_of_floats_becomes_the_largest_one(bridge, servicer, number):
    async def huge(reply):
        await reply.accept()
        await reply.say(f'{{"a":{number}}}')
        await reply.complete()

    servicer.script = huge
    largest = sys.float_info.max if number[0] != "-" else -sys.float_info.max
    for route in CLOUDFLARES:
        answer = await ask(bridge, route, {"response_format": {"type": "json_object"}})
        assert (answer.status_code, f'"response":{{"a":{json.dumps(largest)}}}' in answer.text) == (200, True)


MISSING = "Missing X-Auth-Key, X-Auth-Email or Authorization headers"


def refusal(body: dict) -> tuple[int, str]:
    """Return code and sentence of a refusal before any model, which has no request id."""
    if "internalCode" in body:
        return body["internalCode"], body["description"]
    (error,) = body["errors"]
    return error["code"], body["error"]["message"] if "error" in body else error["message"]


@pytest.mark.parametrize(
    ("credentials", "status", "code", "sentence"),
    [
        ({}, 400, 9106, MISSING),
        ({"authorization": "secret"}, 400, 9106, "Authentication failed (status: 400)"),
        ({"authorization": "Bearer other"}, 401, 10000, "Authentication error"),
    ],
)
async def test_credentials_are_required(start_bridge, servicer, credentials, status, code, sentence):
    bridge = await start_bridge(api_tokens=("secret",))
    for route in ROUTES:
        response = await ask(bridge, route, **credentials)
        answer = (CLOUDFLARE_STATUSES.get(code, response.status_code), refusal(response.json()))
        assert (route, answer) == (route, (status, (code, sentence)))
    assert not servicer.requests


ROUTERS = [
    ("POST", "/client/v4/accounts/acc/ai/nothing", 400, 7000, "No route for that URI"),
    ("GET", f"/client/v4/accounts/acc/ai/run/{MODEL}", 405, 7001, "GET not supported for requested URI."),
    (
        "POST",
        "/client/v4/accounts/a%20b/ai/run/m",
        404,
        7003,
        "Could not route to /client/v4/accounts/a b/ai/run/m, perhaps your object identifier is invalid?",
    ),
]


@pytest.mark.parametrize(("method", "url", "status", "code", "sentence"), ROUTERS)
async def test_paths_without_a_route_have_the_routers_errors(bridge, method, url, status, code, sentence):
    response = await bridge.client.request(method, url)
    assert response.status_code == status
    error = {"code": code, "message": sentence}
    assert response.json() == {"result": None, "success": False, "errors": [error], "messages": []}
    assert "cf-ai-req-id" not in response.headers
