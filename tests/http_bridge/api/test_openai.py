"""OpenAI's routes: shapes, chunks, usage, log probabilities, tool calls, and errors for clients of both APIs."""

import json

import grpc
import pytest

from tailrace.v1 import inference_pb2 as pb

MODEL = "@cf/meta/llama-2-7b-chat-int8"
ACCOUNT_URL = "/client/v4/accounts/acc/ai/v1"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": MODEL, "prompt": "Once"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(params=[ACCOUNT_URL, "/v1"])
def base(request):
    return request.param


def chunks(response):
    """Return the payloads of a stream's events. The last event must be [DONE]."""
    *events, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def call_of(text='{"city": "Kyoto"}'):
    return pb.ToolCall(id="abcdefghi", name="weather", arguments=text)


async def calls_a_tool(reply):
    await reply.accept()
    await reply.start()
    await reply.context.write(pb.RunResponse(delta=pb.Delta(tool_calls=[call_of()])))
    completed = pb.Completed(finish_reason=pb.FINISH_REASON_TOOL_CALLS, usage=pb.Usage(prompt_tokens=5))
    await reply.context.write(pb.RunResponse(completed=completed))


async def with_logprobs(reply):
    await reply.accept()
    await reply.start()
    token = pb.Candidate(text="é".encode(), logprob=-0.5)
    logprob = pb.TokenLogprob(token=token, top=[token])
    await reply.context.write(pb.RunResponse(delta=pb.Delta(text="é", tokens=1, logprobs=[logprob])))
    await reply.complete()


async def test_a_chat_completion_has_openais_shape(bridge, base):
    body = (await bridge.ask(CHAT, url=f"{base}/chat/completions")).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "New York\n“é”", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_a_completion_has_openais_shape(bridge, base):
    body = (await bridge.ask(TEXT, url=f"{base}/completions")).json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "New York\n“é”", "logprobs": None, "finish_reason": "stop"}]


async def test_chat_chunks_begin_with_the_role_and_end_with_the_reason(bridge):
    events = chunks(await bridge.ask({**CHAT, "stream": True}, url="/v1/chat/completions"))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "New"},
        {"content": " York"},
        {"content": "\n“é”"},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * 4 + ["stop"]
    assert len({(event["id"], event["created"], event["object"]) for event in events}) == 1
    assert all("usage" not in event for event in events)


async def test_usage_on_request_is_a_chunk_without_choices(bridge):
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    *others, last = chunks(await bridge.ask(body, url="/v1/chat/completions"))
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 12
    assert all(event["usage"] is None for event in others)


async def test_usage_on_cloudflares_route_is_with_the_finish_reason(bridge):
    for route, body in (("chat/completions", CHAT), ("completions", TEXT)):
        *others, last = chunks(await bridge.ask({**body, "stream": True}, url=f"{ACCOUNT_URL}/{route}"))
        assert (last["choices"][0]["finish_reason"], last["usage"]["total_tokens"]) == ("stop", 12)
        assert all("usage" not in event for event in others)


async def test_a_streamed_completion_echoes_the_prompt(bridge):
    events = chunks(await bridge.ask({**TEXT, "stream": True, "echo": True}, url="/v1/completions"))
    assert "".join(event["choices"][0]["text"] for event in events) == "OnceNew York\n“é”"


@pytest.mark.parametrize("text", ["6", "null", "true", "[1]", '{"a":1}'])
async def test_a_token_that_is_json_stays_a_string(bridge, servicer, text):
    async def say(reply):
        await reply.accept()
        await reply.say(text)
        await reply.complete()

    servicer.script = say
    events = chunks(await bridge.ask({**CHAT, "stream": True}, url="/v1/chat/completions"))
    assert events[0]["choices"][0]["delta"]["content"] == text


async def test_log_probabilities_have_openais_shape(bridge, servicer):
    servicer.script = with_logprobs
    body = {**CHAT, "logprobs": True, "top_logprobs": 1}
    choice = (await bridge.ask(body, url="/v1/chat/completions")).json()["choices"][0]
    entry = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    assert choice["logprobs"] == {"content": [{**entry, "top_logprobs": [entry]}]}
    assert servicer.requests[0].logprobs.top == 1


async def test_log_probabilities_of_a_completion_have_text_offsets(bridge, servicer):
    servicer.script = with_logprobs
    body = (await bridge.ask({**TEXT, "logprobs": 1, "echo": True}, url="/v1/completions")).json()
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["é"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"é": -0.5}],
        "text_offset": [4],
    }


async def test_a_whole_number_may_be_written_as_a_float(bridge, servicer):
    await bridge.ask({**TEXT, "logprobs": 2.0}, url="/v1/completions")
    await bridge.ask({**CHAT, "logprobs": True, "top_logprobs": 2.0}, url="/v1/chat/completions")
    assert [request.logprobs.top for request in servicer.requests] == [2, 2]


async def test_a_tool_call_is_a_message_without_content(bridge, servicer):
    servicer.script = calls_a_tool
    choice = (await bridge.ask({**CHAT, "tools": [TOOL]}, url="/v1/chat/completions")).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    function = {"name": "weather", "arguments": '{"city": "Kyoto"}'}
    assert choice["message"]["tool_calls"] == [{"id": "abcdefghi", "type": "function", "function": function}]
    assert [tool.name for tool in servicer.requests[0].chat.tools] == ["weather"]


async def test_a_streamed_tool_call_has_an_index(bridge, servicer):
    servicer.script = calls_a_tool
    events = chunks(await bridge.ask({**CHAT, "tools": [TOOL], "stream": True}, url="/v1/chat/completions"))
    (call,) = events[1]["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["function"]["name"]) == (0, "weather")
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_refusal_has_the_error_formats_of_both_apis(bridge, servicer, base):
    response = await bridge.ask({**CHAT, "temperature": 9}, url=f"{base}/chat/completions")
    body = response.json()
    assert response.status_code == 400
    assert body["error"] == {
        "message": "Bad input: Error: '/temperature' must be <= 5",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "5006",
    }
    assert body["errors"][0]["code"] == 5006 and body["success"] is False
    assert not servicer.requests


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"n": 9}, "'/n' must be <= 8"),
        ({"logit_bias": {"5": 101}}, "'/logit_bias/5' must be <= 100"),
        ({"model": None}, "required properties at '/' are 'model,messages'"),
        ({"messages": []}, "'/messages' must hold at least 1 items"),
        ({"tool_choice": "required"}, "'/tool_choice' needs tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": ""}}},
            "'/tool_choice/function/name' is not the name of one of the tools",
        ),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "is not the name of one of the tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "is not the name of one of the tools",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, f"the model {MODEL} reads text only"),
    ],
)
async def test_unsupported_features_are_refused_and_not_ignored(bridge, servicer, fields, complaint):
    response = await bridge.ask({**CHAT, **fields}, url="/v1/chat/completions")
    assert (response.status_code, complaint in response.json()["error"]["message"]) == (400, True)
    assert not servicer.requests


async def test_a_failure_during_a_stream_is_an_error_chunk_and_no_end(bridge, servicer):
    async def fail(reply):
        await reply.accept()
        await reply.say("one")
        await reply.refuse(grpc.StatusCode.INTERNAL, "GENERATION_FAILED")

    servicer.script = fail
    response = await bridge.ask({**CHAT, "stream": True}, url="/v1/chat/completions")
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


async def test_max_completion_tokens_is_max_tokens(bridge, servicer):
    await bridge.ask({**CHAT, "max_completion_tokens": 9}, url="/v1/chat/completions")
    assert servicer.requests[0].sampling.max_tokens == 9


async def test_routes_of_other_tasks_are_refused(bridge, base):
    for name in ("audio/speech", "images/generations"):
        response = await bridge.ask({"model": MODEL}, url=f"{base}/{name}")
        assert (response.status_code, response.json()["errors"][0]["code"]) == (404, 7000)
        assert name in response.json()["error"]["message"]
