"""Several replies to one request (`n`): one body or one stream with all choices, and one error for all."""

import asyncio
import json

import grpc
import pytest

from http_bridge.api.openai.choices import copies
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.request_fields import DETERMINISTIC_SEED
from tests.http_bridge.api.test_openai import CHAT, MODEL, TEXT, TOOL, call_of, chunks, with_logprobs

CHAT_URL = "/v1/chat/completions"


def counting(servicer):
    """Make each call reply with its number in the order of arrival, and with as many tokens."""

    async def say(reply):
        number = servicer.requests.index(reply.request) + 1
        await reply.accept()
        await reply.start()
        for word in ("reply ", str(number)):
            await reply.say(word)
        usage = pb.Usage(prompt_tokens=5, completion_tokens=number, cached_tokens=2, reasoning_tokens=1)
        completed = pb.Completed(finish_reason=pb.FINISH_REASON_STOP, usage=usage)
        await reply.context.write(pb.RunResponse(completed=completed))

    servicer.script = say


def joined(events, index, field="content"):
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice.get("text", choice.get("delta", {}).get(field)) or "" for choice in choices)


@pytest.mark.parametrize(("url", "body"), [(CHAT_URL, CHAT), ("/v1/completions", TEXT)])
async def test_a_reply_has_n_choices_in_order_and_counts_the_prompt_once(bridge, servicer, url, body):
    counting(servicer)
    answer = (await bridge.ask({**body, "n": 3, "seed": 7}, url=url)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    texts = [choice.get("text") or choice["message"]["content"] for choice in answer["choices"]]
    assert texts == ["reply 1", "reply 2", "reply 3"]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (5, 6)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


@pytest.mark.parametrize(("url", "body"), [(CHAT_URL, CHAT), ("/v1/completions", TEXT)])
async def test_a_stream_has_n_choices_with_their_indices(bridge, servicer, url, body):
    counting(servicer)
    asked = {**body, "n": 8, "seed": 7, "stream": True, "stream_options": {"include_usage": True}}
    *events, usage = chunks(await bridge.ask(asked, url=url))
    assert [joined(events, index) for index in range(8)] == [f"reply {index + 1}" for index in range(8)]
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert reasons == ["stop"] * 8
    assert len({event["id"] for event in events}) == 1
    assert (usage["choices"], usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == ([], 5, 36)


async def test_several_prompts_have_their_choices_one_after_the_other(bridge, servicer):
    counting(servicer)
    body = {**TEXT, "prompt": ["one", "two"], "n": 2, "seed": 3, "echo": True}
    answer = (await bridge.ask(body, url="/v1/completions")).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["onereply 1", "onereply 2", "tworeply 3", "tworeply 4"]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (10, 10)
    sent = servicer.requests
    assert [request.text for request in sent] == ["one", "one", "two", "two"]
    assert sent[0].sampling.seed == sent[2].sampling.seed == 3
    *events, last = chunks(await bridge.ask({**body, "stream": True, "echo": False}, url="/v1/completions"))
    assert {choice["index"] for event in events for choice in event["choices"]} == {0, 1, 2, 3}


async def test_a_stream_at_the_account_has_the_usage_once(bridge, servicer):
    counting(servicer)
    events = chunks(
        await bridge.ask({**CHAT, "n": 2, "seed": 1, "stream": True}, url=f"/client/v4/accounts/a/ai{CHAT_URL}")
    )
    assert [event["usage"]["completion_tokens"] for event in events if event.get("usage")] == [3]


async def test_choices_arrive_side_by_side(bridge, servicer):
    both = asyncio.Barrier(2)

    async def meet(reply):
        await reply.accept()
        await both.wait()
        await reply.say("x")
        await reply.complete()

    servicer.script = meet
    async with asyncio.timeout(5):
        assert len((await bridge.ask({**CHAT, "n": 2}, url=CHAT_URL)).json()["choices"]) == 2


async def test_tools_and_log_probabilities_come_with_every_choice(bridge, servicer):
    async def call(reply):
        await reply.accept()
        for name in ("first", "second"):
            delta = pb.Delta(tool_calls=[pb.ToolCall(id=name, name="weather", arguments="{}"), call_of()])
            await reply.context.write(pb.RunResponse(delta=delta))
        await reply.context.write(pb.RunResponse(completed=pb.Completed(finish_reason=pb.FINISH_REASON_TOOL_CALLS)))

    servicer.scripts = [call, with_logprobs]
    asked = {**CHAT, "n": 2, "tools": [TOOL], "logprobs": True, "stream": True}
    events = chunks(await bridge.ask(asked, url=CHAT_URL))
    calls = [call for event in events for choice in event["choices"] for call in choice["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1, 2, 3]
    tokens = [
        (choice["index"], choice["logprobs"]) for event in events for choice in event["choices"] if choice["logprobs"]
    ]
    assert [(index, logprobs["content"][0]["token"]) for index, logprobs in tokens] == [(1, "é")]


async def test_one_refused_reply_cancels_the_others(bridge, servicer):
    async def refuse(reply):
        await reply.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAPACITY_EXCEEDED")

    async def wait(reply):
        await reply.accept()
        await reply.forever()

    for stream in (False, True):
        servicer.scripts = [wait, refuse]
        servicer.cancelled.clear()
        response = await bridge.ask({**CHAT, "n": 2, "stream": stream}, url=CHAT_URL)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        async with asyncio.timeout(5):
            await servicer.cancelled.wait()


async def test_a_failure_of_one_choice_ends_the_stream_with_an_error(bridge, servicer):
    async def fail(reply):
        await reply.accept()
        await reply.say("one")
        await reply.refuse(grpc.StatusCode.INTERNAL, "GENERATION_FAILED")

    async def wait(reply):
        await reply.accept()
        await reply.forever()

    servicer.scripts = [wait, fail]
    response = await bridge.ask({**CHAT, "n": 2, "stream": True}, url=CHAT_URL)
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


async def test_a_disconnect_cancels_every_choice(bridge, servicer):
    begun, cancelled = asyncio.Queue(), asyncio.Queue()

    async def wait(reply):
        await reply.accept()
        begun.put_nowait(reply)
        try:
            await reply.forever()
        finally:
            cancelled.put_nowait(reply)

    servicer.script = wait
    asked = asyncio.create_task(bridge.ask({**CHAT, "n": 3}, url=CHAT_URL))
    async with asyncio.timeout(10):
        for _ in range(3):
            await begun.get()
        asked.cancel()
        for _ in range(3):
            await cancelled.get()


def test_the_first_choice_has_the_seed_of_the_request_and_the_others_have_unrelated_ones():
    request = pb.RunRequest(model=MODEL, text="x", sampling=pb.Sampling(seed=2**64 - 1))
    seeds = [copy.sampling.seed for copy in copies(request, 8)]
    assert seeds[0] == 2**64 - 1 and len(set(seeds)) == 8
    assert seeds == [copy.sampling.seed for copy in copies(request, 8)]
    neighbours = [copy.sampling.seed for copy in copies(pb.RunRequest(sampling=pb.Sampling(seed=0)), 8)]
    assert not set(seeds) & set(neighbours)
    assert not any(copy.sampling.HasField("seed") for copy in copies(pb.RunRequest(), 8))


def test_in_deterministic_mode_choices_without_a_seed_have_different_fixed_seeds():
    first, *others = copies(pb.RunRequest(), 8, has_fixed_seeds=True)
    assert not first.sampling.HasField("seed")  # the server's fixed one
    assert len({copy.sampling.seed for copy in others} | {DETERMINISTIC_SEED}) == 8
    assert others == list(copies(pb.RunRequest(), 8, has_fixed_seeds=True)[1:])
