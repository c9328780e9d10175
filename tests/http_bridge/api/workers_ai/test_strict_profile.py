"""The profile 2026-strict refuses what Workers AI refuses in production. The other profiles serve it."""

import json

import pytest

from http_bridge.api.reply_writer import ReplyWriter
from http_bridge.api.strict_writer import StrictWriter
from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import MODEL

HOSTED = "@cf/test/hosted"
URL = f"/client/v4/accounts/acc/ai/run/{HOSTED}"
CHAT_URL = "/client/v4/accounts/acc/ai/v1/chat/completions"
STRICT = {"tailrace-profile": "2026-strict"}
MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
FORCED = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "max_tokens": 5}


@pytest.fixture(params=["response", "choices"])
def shape(request, servicer):
    servicer.models = [pb.Model(name=HOSTED, window=30, reply_shape=request.param)]
    return request.param


async def cut(reply, reason=pb.FINISH_REASON_LENGTH):
    await reply.accept()
    await reply.start()
    completed = pb.Completed(finish_reason=reason, usage=pb.Usage(prompt_tokens=5, completion_tokens=5))
    await reply.context.write(pb.RunResponse(completed=completed))


def code(response):
    return response.status_code, response.json()["errors"][0]["code"]


@pytest.mark.parametrize("response_format", [SCHEMA, {"type": "json_object"}])
async def test_json_mode_in_a_stream_is_refused(bridge, shape, servicer, response_format):
    body = {"messages": MESSAGES, "stream": True, "response_format": response_format}
    assert code(await bridge.ask(body, url=URL, headers=STRICT)) == (400, 5023)
    assert not servicer.requests
    await bridge.ask({**body, "stream": False}, url=URL, headers=STRICT)
    assert len(servicer.requests) == 1


@pytest.mark.parametrize("profile", ["default", "2023-11", "2026"])
async def test_json_mode_streams_in_the_other_profiles(bridge, shape, profile):
    body = {"messages": MESSAGES, "stream": True, "response_format": SCHEMA}
    response = await bridge.ask(body, url=URL, headers={"tailrace-profile": profile})
    assert response.headers["content-type"] == "text/event-stream"


async def test_json_mode_in_a_stream_of_openais_route_is_refused(bridge, shape):
    body = {"model": HOSTED, "messages": MESSAGES, "stream": True, "response_format": SCHEMA}
    assert code(await bridge.ask(body, url=CHAT_URL, headers=STRICT)) == (400, 5023)


async def test_a_forced_call_that_was_cut_is_an_error(bridge, shape, servicer):
    servicer.script = cut
    assert code(await bridge.ask(FORCED, url=URL, headers=STRICT)) == (400, 8006)
    text = (await bridge.ask({**FORCED, "stream": True}, url=URL, headers=STRICT)).text
    last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["errors"][0]["code"] == 8006 and "[DONE]" not in text


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (pb.FINISH_REASON_LENGTH, "the reply reached max_tokens before"),
        (pb.FINISH_REASON_TIME_LIMIT, "the time limit of the reply expired before"),
    ],
)
async def test_the_error_of_a_cut_call_names_the_limit(bridge, shape, servicer, reason, cause):
    servicer.script = lambda reply: cut(reply, reason)
    (error,) = (await bridge.ask(FORCED, url=URL, headers=STRICT)).json()["errors"]
    assert error["code"] == 8006 and cause in error["message"]
    assert ("Increase max_tokens" in error["message"]) == (reason == pb.FINISH_REASON_LENGTH)


async def test_a_forced_call_that_was_cut_is_a_short_reply_in_the_default_profile(bridge, shape, servicer):
    servicer.script = cut
    result = (await bridge.ask(FORCED, url=URL)).json()["result"]
    if shape == "response":
        assert (result["response"], result["tool_calls"]) == ("", [])
    else:
        assert result["choices"][0]["finish_reason"] == "length"


async def test_a_reply_without_a_forced_call_may_be_cut(bridge, shape, servicer):
    servicer.script = cut
    body = {**FORCED, "tool_choice": "auto"}
    assert (await bridge.ask(body, url=URL, headers=STRICT)).status_code == 200


async def test_a_removed_model_is_refused(bridge, servicer):
    response = await bridge.ask(headers=STRICT)
    assert code(response) == (400, 5028)
    sentence = "This model was deprecated on 2026-05-30. Please use an alternative model."
    assert sentence in response.json()["errors"][0]["message"]
    assert not servicer.requests
    assert (await bridge.ask()).status_code == 200


async def test_the_binding_reads_the_code_of_a_removed_model(bridge):
    headers = {**STRICT, "cf-consn-model-id": MODEL}
    response = await bridge.client.post("/run?version=3", json={"inputs": {"prompt": "hi"}}, headers=headers)
    assert (response.status_code, response.json()["internalCode"]) == (400, 5028)


def test_the_check_passes_every_other_question_on():
    overridden = {name for name in vars(ReplyWriter) if not name.startswith("_")} - {"stream_type", "complete_type"}
    assert overridden <= set(vars(StrictWriter))


async def test_the_setting_selects_the_profile(start_bridge):
    bridge = await start_bridge(profile="2026-strict")
    assert code(await bridge.ask()) == (400, 5028)
