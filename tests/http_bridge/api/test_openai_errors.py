"""Errors of OpenAI's routes as its SDKs expect them, limits without max_tokens, and the list of models."""

import grpc
import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.api.test_openai import ACCOUNT_URL, CHAT, MODEL, TEXT
from tests.http_bridge.test_errors import FIELD

Code = grpc.StatusCode


@pytest.fixture(params=[ACCOUNT_URL, "/v1"])
def base(request):
    return request.param


def error_of(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["type"], error["code"], error["param"]


async def test_an_unknown_model_is_404_and_the_models_are_listed(bridge, servicer, base):
    servicer.script = lambda reply: reply.refuse(Code.NOT_FOUND, "UNKNOWN_MODEL")
    for route, body in (("chat/completions", CHAT), ("completions", TEXT)):
        response = await bridge.ask({**body, "model": "gpt-4o"}, url=f"{base}/{route}")
        assert error_of(response) == (404, "invalid_request_error", "model_not_found", "model")
        message = response.json()["error"]["message"]
        assert message == f"The model 'gpt-4o' does not exist: the models here are {MODEL}, @hf/other/second"
    servicer.embed = lambda reply: reply.refuse(Code.NOT_FOUND, "UNKNOWN_MODEL")
    response = await bridge.ask({"model": "gpt-4o", "input": "a"}, url=f"{base}/embeddings")
    assert MODEL in response.json()["error"]["message"]
    response = await bridge.client.get(f"{base}/models/gpt-4o")
    assert error_of(response) == (404, "invalid_request_error", "model_not_found", "model")


async def test_a_model_that_is_unknown_everywhere_is_listed_by_rest_too(bridge, servicer):
    servicer.script = lambda reply: reply.refuse(Code.NOT_FOUND, "UNKNOWN_MODEL")
    assert "the models here are" in (await bridge.ask()).json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("reason", "metadata", "limit", "count"),
    [
        ("PROMPT_TOO_LONG", {"prompt_tokens": "50012", "context_length": "2048"}, "2048", "50012"),
        ("NO_ROOM_FOR_REPLY", {"prompt_tokens": "2000", "max_tokens": "256", "window": "2048"}, "2048", "2256"),
    ],
)
async def test_a_long_prompt_has_the_code_and_the_words_by_which_agents_compact(
    bridge, servicer, base, reason, metadata, limit, count
):
    servicer.script = lambda reply: reply.refuse(Code.INVALID_ARGUMENT, reason, **metadata)
    for stream in (False, True):
        response = await bridge.ask({**CHAT, "stream": stream}, url=f"{base}/chat/completions")
        assert error_of(response) == (400, "invalid_request_error", "context_length_exceeded", "messages")
        message = response.json()["error"]["message"]
        assert message.startswith(f"This model's maximum context length is {limit} tokens. However, ")
        assert f"{count} tokens" in message and "reduce the length of the messages" in message
        assert response.json()["errors"][0]["code"] == 5021


async def test_a_wrong_field_of_the_server_is_the_param(bridge, servicer):
    servicer.script = lambda reply: reply.refuse(Code.INVALID_ARGUMENT, "INVALID_FIELD", FIELD)
    response = await bridge.ask(CHAT, url="/v1/chat/completions")
    assert error_of(response) == (400, "invalid_request_error", "5006", "top_k")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (401, "authentication_error", "invalid_api_key", None)),
        ({"authorization": "Bearer other"}, (401, "authentication_error", "invalid_api_key", None)),
        ({"authorization": "secret"}, (401, "authentication_error", "invalid_api_key", None)),
    ],
)
async def test_credentials_that_are_missing_or_wrong_are_401(start_bridge, base, headers, expected):
    bridge = await start_bridge(api_tokens=("secret",))
    assert error_of(await bridge.ask(CHAT, url=f"{base}/chat/completions", headers=headers)) == expected


@pytest.mark.parametrize("reason", ["CAPACITY_EXCEEDED", "RATE_LIMITED"])
async def test_a_limit_is_429(bridge, servicer, reason):
    servicer.script = lambda reply: reply.refuse(Code.RESOURCE_EXHAUSTED, reason)
    response = await bridge.ask(CHAT, url="/v1/chat/completions")
    assert error_of(response) == (429, "rate_limit_error", "rate_limit_exceeded", None)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/models", 405, "method_not_allowed"),
        ("POST", "/fine_tuning/jobs", 404, "unknown_url"),
        ("GET", "/files", 404, "unknown_url"),
        ("POST", "", 404, "unknown_url"),
        ("POST", "/v1/chat/completions", 404, "unknown_url"),
    ],
)
async def test_paths_without_a_route_have_an_error_object(bridge, base, method, path, status, code):
    response = await bridge.client.request(method, base + path)
    assert error_of(response) == (status, "invalid_request_error", code, None)
    assert response.json()["success"] is False
    assert status != 405 or {"POST", "GET"} & set(response.headers["allow"].split(", "))


@pytest.mark.parametrize("base", ["", "/client/v4/accounts/acc/ai", "/api", "/v1/v1"])
@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings", "responses"])
async def test_a_base_address_without_v1_is_named(bridge, base, path):
    response = await bridge.ask(CHAT, url=f"{base}/{path}")
    assert error_of(response)[0] == 404
    assert "base address" in response.json()["error"]["message"]
    assert "base address" in response.json()["errors"][0]["message"]


async def test_a_run_without_its_account_is_named(bridge):
    response = await bridge.ask(url=f"/ai/run/{MODEL}")
    assert (response.status_code, "/client/v4/accounts/" in response.json()["errors"][0]["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/chat/completions/", "//chat/completions", "/chat/completions//"])
async def test_additional_slashes_change_nothing(bridge, base, path):
    assert (await bridge.ask(CHAT, url=base + path)).status_code == 200


async def test_models_accept_additional_slashes(bridge, base):
    assert len((await bridge.client.get(f"{base}/models/")).json()["data"]) == 2
    assert (await bridge.client.get(f"{base}/models/{MODEL}/")).json()["id"] == MODEL


async def test_models_have_their_lengths(bridge, servicer, base):
    servicer.models.append(pb.Model(name="embedder", context_length=512, task=pb.TASK_TEXT_EMBEDDING))
    first, second, third = (await bridge.client.get(f"{base}/models")).json()["data"]
    assert {first[key] for key in ("context_length", "max_model_len")} == {30} and first["max_output_tokens"] == 10
    assert set(first) >= {"id", "object", "created", "owned_by"}
    assert (second["context_length"], "max_output_tokens" in second) == (40, False)
    assert third["context_length"] == 512


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_without_max_tokens_has_no_hidden_limit(bridge, servicer, base, stream):
    for route, body in (("chat/completions", CHAT), ("completions", TEXT)):
        for unset in ({}, {"max_tokens": -1}, {"max_tokens": None}):
            await bridge.ask({**body, **unset, "stream": stream}, url=f"{base}/{route}")
    assert not any(request.sampling.HasField("max_tokens") for request in servicer.requests)


@pytest.mark.parametrize(("base", "limit", "must_fit"), [(ACCOUNT_URL, 256, True), ("/v1", 0, False)])
async def test_the_current_profile_has_cloudflares_limit_at_the_account(bridge, servicer, base, limit, must_fit):
    for stream in (False, True):
        await bridge.ask(
            {**CHAT, "stream": stream}, url=f"{base}/chat/completions", headers={"tailrace-profile": "2026"}
        )
    assert [(request.sampling.max_tokens, request.max_tokens_must_fit) for request in servicer.requests] == [
        (limit, must_fit)
    ] * 2


async def test_options_at_the_root_name_every_method(bridge):
    response = await bridge.client.options("/")
    assert response.status_code == 405 and {"GET", "HEAD", "POST"} <= set(response.headers["allow"].split(", "))
