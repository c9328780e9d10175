"""Replies, vectors and models, as both clients return them through both doors."""

import pytest

from tailrace import (
    Client,
    Finished,
    Message,
    ReasoningDelta,
    Started,
    TextDelta,
    Tool,
    ToolCall,
    ToolCalled,
    Usage,
)
from tailrace.v1 import inference_pb2 as pb
from tests.tailrace.conftest import MODEL

EVERYTHING = {
    "system": "Be brief.",
    "max_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 3,
    "min_p": 0.125,
    "seed": 0,
    "repetition_penalty": 1.5,
    "frequency_penalty": -0.5,
    "presence_penalty": 0.5,
    "stop": ["a", "b"],
    "logit_bias": {5: -2},
    "logprobs": 2,
    "tools": [Tool("weather", "Look", {"type": "object", "properties": {"city": {"type": "string"}}}), Tool("now")],
    "tool_choice": "weather",
    "parallel_tool_calls": False,
    "json_schema": {"type": "object"},
    "reasoning_effort": "low",
    "template_arguments": {"enable_thinking": True},
    "reject_if_busy": True,
}
CONVERSATION = [
    Message("user", "weather?"),
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Hm.",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "content": [{"type": "text", "text": "17"}], "tool_call_id": "1", "name": "weather"},
    Message("assistant", "It is"),
]


async def all_kinds(reply):
    """Answer with every kind of event."""
    await reply.accept()
    await reply.start()
    token = pb.Candidate(text=b"\xe2\x82", logprob=-0.5)
    logprob = pb.TokenLogprob(token=token, top=[token, pb.Candidate(text=b"x", logprob=-1.5)])
    call = pb.ToolCall(id="abc", name="weather", arguments='{"city": "Paris"}')
    for delta in (
        pb.Delta(reasoning="I\u2028think"),
        pb.Delta(text="New\u2028\r\n", tokens=1, logprobs=[logprob]),
        pb.Delta(text="York"),
        pb.Delta(tool_calls=[call, call]),
    ):
        await reply.context.write(pb.RunResponse(delta=delta))
    usage = pb.Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=4, reasoning_tokens=2)
    completed = pb.Completed(finish_reason=pb.FINISH_REASON_TOOL_CALLS, usage=usage)
    await reply.context.write(pb.RunResponse(completed=completed))


async def test_a_reply_has_text_reason_usage_and_id(client, servicer, in_thread):
    reply = await in_thread(client.run, "hi")
    assert (reply.text, str(reply), reply.finish_reason) == ("New York\n“é”", "New York\n“é”", "stop")
    assert (reply.usage, reply.usage.total_tokens, reply.model) == (Usage(5, 7), 12, MODEL)
    assert reply.request_id == servicer.request_ids[0]
    assert reply.message == Message("assistant", "New York\n“é”")


async def test_a_stream_has_an_event_of_the_right_type_for_everything(client, servicer, in_thread):
    servicer.script = all_kinds
    started, thought, first, second, *calls, finished = await in_thread(list, client.stream("hi", logprobs=1))
    assert started == Started(MODEL, servicer.request_ids[0])
    assert thought == ReasoningDelta("I\u2028think")
    assert (first.text, second) == ("New\u2028\r\n", TextDelta("York"))
    (token,) = first.logprobs
    assert (token.bytes, token.logprob, [each.text for each in token.top]) == (b"\xe2\x82", -0.5, ["\ufffd", "x"])
    assert calls == [ToolCalled(ToolCall("weather", '{"city": "Paris"}', "abc"))] * 2
    assert calls[0].call.json() == {"city": "Paris"}
    assert finished == Finished("tool_calls", Usage(5, 7, 4, 2))


async def test_both_clients_collect_the_same_reply(client, async_client, servicer, in_thread):
    servicer.script = all_kinds
    one, other = await in_thread(client.run, "hi"), await async_client.run("hi")
    assert one.request_id != other.request_id
    assert (one.text, one.reasoning, one.tool_calls, one.logprobs, one.usage) == (
        other.text,
        other.reasoning,
        other.tool_calls,
        other.logprobs,
        other.usage,
    )


async def test_texts_and_the_reply_come_from_one_stream(async_client, servicer):
    async with async_client.stream("hi") as stream:
        assert stream.request_id == servicer.request_ids[0]
        assert [text async for text in stream.texts()] == ["New", " York", "\n“é”"]
        assert (await stream.reply()).text == "New York\n“é”"


async def test_the_blocking_stream_does_the_same(client, servicer, in_thread):
    def read():
        with client.stream("hi") as stream:
            return [*stream.texts()], stream.reply().text, stream.request_id

    assert await in_thread(read) == (["New", " York", "\n“é”"], "New York\n“é”", servicer.request_ids[0])


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("hi", EVERYTHING),
        ("hi", {"json_object": True, "tool_choice": "none"}),
        ("hi", {"raw": True, "logprobs": 0, "max_tokens": 1, "seed": 2**63 - 1}),
        (None, {"messages": CONVERSATION, "continue_final_message": True}),
    ],
    ids=["everything", "json", "raw", "conversation"],
)
async def test_both_doors_send_the_server_the_same_request(backend, start_bridge, servicer, in_thread, prompt, options):
    bridge = await start_bridge()
    for url in (f"http://127.0.0.1:{bridge.port}", f"grpc://{backend.address}"):
        with Client(url, model=MODEL, account="acme") as client:
            await in_thread(client.run, prompt, **options)
    over_rest, over_grpc = servicer.requests
    # The bridge writes JSON text with other spaces.
    for request in (over_rest, over_grpc):
        for tool in request.chat.tools:
            tool.parameters = tool.parameters.replace(" ", "")
    assert over_rest == over_grpc
    assert over_rest.account == "acme"


async def test_vectors_and_models_are_the_same_through_both_doors(client, async_client, servicer, in_thread):
    servicer.models.append(
        pb.Model(name="embedder", task=pb.TASK_TEXT_EMBEDDING, dimensions=2, context_length=9, window=9)
    )
    servicer.models[0].adapters.append("polite")
    embeddings = await in_thread(client.embed, ["a", "bcd"])
    assert [vector[0] for vector in embeddings.vectors] == [1.0, 3.0]
    assert embeddings.vectors[0][1] == pytest.approx(0.1) and embeddings.prompt_tokens == 6
    assert (embeddings.model, servicer.embed_requests[0].model) == ("embedder", "embedder")
    assert (await async_client.embed("a", dimensions=1)).vectors == [embeddings.vectors[0]]
    assert servicer.embed_requests[1].dimensions == 1
    first, _, last = await async_client.models()
    assert (first.name, first.description, first.window, first.max_output_tokens) == (MODEL, "First", 30, 10)
    assert (first.adapters, first.task) == (("polite",), "text-generation")
    assert (last.task, last.dimensions, last.window) == ("text-embeddings", 2, 9)


async def test_a_request_without_a_model_uses_the_first_one(url, servicer, in_thread):
    with Client(url) as client:
        assert (await in_thread(client.run, "hi")).model == MODEL
        await in_thread(client.run, "hi")
    assert servicer.requests[1].model == MODEL
