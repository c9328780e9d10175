"""Errors of OpenAI's Responses API: failures during a stream, prompts that are too long, and responses that are not stored."""

import grpc
import pytest

from tests.http_bridge.api.responses.conftest import ASKED, URL, events_of, types_of


async def test_a_failure_during_a_stream_is_a_failed_response(bridge, servicer):
    async def fail(reply):
        await reply.accept()
        await reply.start()
        await reply.say("one")
        await reply.refuse(grpc.StatusCode.INTERNAL, "GENERATION_FAILED")

    servicer.script = fail
    events = events_of(await bridge.ask({**ASKED, "stream": True}, url=URL))
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"], response["error"]["code"]) == (
        "response.failed",
        "failed",
        "server_error",
    )
    assert response["output"][0]["content"][0]["text"] == "one"


async def too_long(reply):
    await reply.refuse(
        grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG", prompt_tokens="50000", context_length="2048"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_is_openais_error(bridge, servicer, stream):
    servicer.script = too_long
    response = await bridge.ask({**ASKED, "stream": stream}, url=URL)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    assert "maximum context length is 2048 tokens" in error["message"] and "50000" in error["message"]


async def test_codex_gets_a_prompt_that_is_too_long_as_a_failed_response(bridge, servicer):
    servicer.script = too_long
    response = await bridge.ask({**ASKED, "stream": True}, url=URL, headers={"originator": "codex_cli_rs"})
    events = events_of(response, checks_types=False)
    assert types_of(events) == ["created", "in_progress", "failed"]
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("method", "path"), [("GET", "resp_1"), ("DELETE", "resp_1"), ("POST", "resp_1/cancel")])
async def test_no_response_is_stored(bridge, method, path):
    response = await bridge.client.request(method, f"{URL}/{path}")
    assert response.status_code == 404
    assert "resp_1" in response.json()["error"]["message"] and "not stored" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["responses/compact", "responses/input_tokens"])
async def test_other_routes_of_the_api_are_named(bridge, name):
    response = await bridge.ask(ASKED, url=f"/v1/{name}")
    assert (response.status_code, name in response.json()["error"]["message"]) == (404, True)
