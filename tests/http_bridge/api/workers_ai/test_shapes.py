"""Models whose catalog entry has `shape = "choices"`: OpenAI's parameters and replies on /ai/run and the binding."""

import asyncio
import json

import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import MODEL, RUN_URL, Backend

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
MESSAGES = [{"role": "user", "content": "hi"}]


def choices_model(name=MODEL):
    return pb.Model(name=name, description="First", window=30, reply_shape="choices")


@pytest.fixture
def servicer(servicer):
    servicer.models = [choices_model()]
    return servicer


async def thinking(reply):
    await reply.accept()
    await reply.start()
    for delta in (pb.Delta(reasoning="Hm", tokens=1), pb.Delta(text="Yes", tokens=1)):
        await reply.context.write(pb.RunResponse(delta=delta))
    await reply.complete()


async def calling(reply):
    await reply.accept()
    await reply.start()
    call = pb.ToolCall(id="call_1", name="get_weather", arguments='{"city": "Oslo"}')
    await reply.context.write(pb.RunResponse(delta=pb.Delta(tool_calls=[call], tokens=9)))
    usage = pb.Usage(prompt_tokens=5, completion_tokens=9)
    completed = pb.Completed(finish_reason=pb.FINISH_REASON_TOOL_CALLS, usage=usage)
    await reply.context.write(pb.RunResponse(completed=completed))


def events(text):
    *parts, done = text.strip().split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


async def binding(bridge, inputs):
    body = {"inputs": inputs, "options": {}}
    return await bridge.client.post("/run?version=3", json=body, headers={"cf-consn-model-id": MODEL})


async def test_a_reply_has_choices_in_the_envelope(bridge, servicer):
    body = (await bridge.ask({"messages": MESSAGES})).json()
    assert body["success"] is True
    result = body["result"]
    assert (result["object"], result["model"]) == ("chat.completion", MODEL)
    assert result["choices"][0]["message"]["content"] == "New York\n“é”"
    assert result["choices"][0]["finish_reason"] == "stop" and result["usage"]["total_tokens"] == 12


async def test_the_binding_gets_the_choices_bare(bridge, servicer):
    assert (await binding(bridge, {"prompt": "hi"})).json()["choices"][0]["message"]["role"] == "assistant"
    assert [turn.content for turn in servicer.requests[0].chat.turns] == ["hi"]


@pytest.mark.parametrize("asks", ["rest", "binding"])
async def test_a_stream_has_chunks_and_ends_as_workers_ai_does(bridge, servicer, asks):
    inputs = {"messages": MESSAGES, "stream": True}
    response = await (bridge.ask(inputs) if asks == "rest" else binding(bridge, inputs))
    assert response.headers["content-type"] == "text/event-stream"
    *chunks, last, usage = events(response.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert texts == ["", "New", " York", "\n“é”"]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (usage["response"], usage["usage"]["completion_tokens"]) == ("", 7)


async def test_openais_usage_chunk_comes_where_the_client_asks_for_it(bridge, servicer):
    body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    *_, openai, workers_ai = events((await bridge.ask(body)).text)
    assert openai["choices"] == [] and openai["usage"]["prompt_tokens"] == workers_ai["usage"]["prompt_tokens"] == 5


async def test_thoughts_are_no_content(bridge, servicer):
    servicer.script = thinking
    message = (await bridge.ask({"messages": MESSAGES})).json()["result"]["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("Yes", "Hm", "Hm")
    chunks = events((await bridge.ask({"messages": MESSAGES, "stream": True})).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["Hm"]
    assert [delta["content"] for delta in deltas if delta.get("content")] == ["Yes"]


async def test_tool_calls_have_openais_form(bridge, servicer):
    servicer.script = calling
    choice = (await bridge.ask({"messages": MESSAGES, "tools": TOOLS})).json()["result"]["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}


async def test_openais_parameters_are_accepted(bridge, servicer):
    body = {
        "messages": MESSAGES,
        "max_completion_tokens": 7,
        "stop": ["."],
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"1": -100},
        "tools": TOOLS,
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "reasoning_effort": "none",
        "chat_template_kwargs": {"enable_thinking": False},
        "response_format": {"type": "text"},
        "temperature": 0,
        "user": "someone",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "seed": 0,
    }
    response = await bridge.ask(body)
    assert response.status_code == 200, response.text
    (request,) = servicer.requests
    assert (request.sampling.max_tokens, list(request.sampling.stop), request.logprobs.top) == (7, ["."], 2)
    assert request.chat.reasoning_effort == "none" and not request.chat.parallel_tool_calls


async def test_these_models_have_no_hidden_limit_on_tokens(bridge, servicer):
    await bridge.ask({"messages": MESSAGES})
    await bridge.ask({"messages": MESSAGES}, headers={"tailrace-profile": "2026"})
    has_limit = [request.sampling.HasField("max_tokens") for request in servicer.requests]
    assert has_limit == [False, True]


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_share_one_reply(bridge, servicer, stream):
    response = await bridge.ask({"messages": MESSAGES, "n": 2, "stream": stream})
    if stream:
        *chunks, usage = events(response.text)
        indices = {choice["index"] for chunk in chunks for choice in chunk["choices"]}
        assert usage["usage"] == {**usage["usage"], "prompt_tokens": 5, "completion_tokens": 14}
    else:
        indices = {choice["index"] for choice in response.json()["result"]["choices"]}
    assert indices == {0, 1} and len(servicer.requests) == 2


async def test_thoughts_can_be_hidden(bridge, servicer):
    servicer.script = thinking
    body = {"messages": MESSAGES, "include_reasoning": False}
    message = (await bridge.ask(body)).json()["result"]["choices"][0]["message"]
    assert message["content"] == "Yes" and "reasoning_content" not in message


async def test_padding_is_in_every_chunk(start_bridge, servicer):
    bridge = await start_bridge(stream_padding=True)
    chunks = events((await bridge.ask({"messages": MESSAGES, "stream": True})).text)[:-2]
    assert chunks and all(1 <= len(chunk["p"]) <= 50 for chunk in chunks)


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": MESSAGES, "temperature": 9}, {"prompt": ""}])
async def test_wrong_bodies_are_refused_in_the_envelope(bridge, servicer, body):
    response = await bridge.ask(body)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5006)


async def test_a_failure_in_a_stream_has_workers_ais_form(bridge, servicer):
    import grpc

    async def failing(reply):
        await reply.accept()
        await reply.start()
        await reply.refuse(grpc.StatusCode.INTERNAL, "GENERATION_FAILED")

    servicer.script = failing
    text = (await bridge.ask({"messages": MESSAGES, "stream": True})).text
    last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert (last["response"], last["success"], last["errors"][0]["code"]) == ("", False, 3000)


async def test_batches_have_the_models_shape(bridge, servicer):
    requests = [{"prompt": "a"}, {"messages": MESSAGES, "n": 2}]
    queued = (await bridge.ask({"requests": requests})).json()["result"]
    async with asyncio.timeout(5):
        while "status" in (answer := (await bridge.ask({"request_id": queued["request_id"]})).json()["result"]):
            await asyncio.sleep(0.005)
    ids = [response["result"]["id"] for response in answer["responses"]]
    assert [len(response["result"]["choices"]) for response in answer["responses"]] == [1, 2]
    assert len(set(ids)) == 2 and all(name.startswith("chatcmpl-") for name in ids)


async def test_the_shape_costs_no_call_for_each_request(bridge, servicer):
    await bridge.ask({"messages": MESSAGES})
    calls = 0
    list_models = servicer.ListModels

    async def counted(request, context):
        nonlocal calls
        calls += 1
        return await list_models(request, context)

    servicer.ListModels = counted
    for _ in range(10):
        await bridge.ask({"messages": MESSAGES})
    assert calls <= 1  # the poll of every 2 s


async def test_a_restarted_server_with_another_catalog_is_noticed(start_bridge, monkeypatch):
    monkeypatch.setattr("http_bridge.upstream.registry.POLL_SECONDS", 0.02)
    first = Backend()
    await first.server.start()
    bridge = await start_bridge(grpc_address=first.address)
    assert "response" in (await bridge.ask({"prompt": "hi"})).json()["result"]
    await first.server.stop(None)
    await asyncio.sleep(0.1)
    second = Backend(address=first.address)
    second.servicer.models = [choices_model()]
    await second.server.start()
    try:
        async with asyncio.timeout(5):
            while "choices" not in (await bridge.ask({"prompt": "hi"})).json()["result"]:
                await asyncio.sleep(0.02)
    finally:
        await second.server.stop(None)


async def test_a_model_that_appears_between_two_polls_has_its_shape_at_once(bridge, servicer, monkeypatch):
    monkeypatch.setattr("http_bridge.upstream.registry._REFRESH_SECONDS", 0)
    await bridge.ask({"prompt": "hi"})
    servicer.models = [choices_model(), choices_model("@cf/new/model")]
    body = (await bridge.ask({"prompt": "hi"}, url=RUN_URL.replace(MODEL, "@cf/new/model"))).json()
    assert "choices" in body["result"]
