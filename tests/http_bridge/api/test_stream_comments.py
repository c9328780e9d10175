"""Comments in silent streams: when they are sent, where, and that clients and metrics skip them."""

import asyncio
import json
import logging

import pytest
from prometheus_client import generate_latest

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import MODEL, RUN_URL
from tests.support.observability.metrics import samples

COMMENT = b": keep-alive\n\n"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
TENSORS = {"input": [{"name": "INPUT_0", "value": ["hi"]}], "stream": True}
STREAM = {"prompt": "hi", "stream": True}
BINDING_HEADERS = {"cf-consn-model-id": MODEL}
ROUTES = {
    "run": (RUN_URL, STREAM, {}),
    "chat at an account": ("/client/v4/accounts/acc/ai/v1/chat/completions", CHAT, {}),
    "chat": ("/v1/chat/completions", CHAT, {}),
    "completions": ("/v1/completions", {"model": MODEL, **STREAM}, {}),
    "binding": ("/run?version=3", {"inputs": STREAM}, BINDING_HEADERS),
    "tensors": ("/run", TENSORS, BINDING_HEADERS),
}


def silent_for(seconds, *texts):
    """Return a script that is silent for some seconds before each text, and before the end."""

    async def script(reply):
        await reply.accept()
        for text in texts:
            await asyncio.sleep(seconds)
            await reply.say(text)
        await asyncio.sleep(seconds)
        await reply.complete()

    return script


@pytest.mark.parametrize("route", ROUTES)
async def test_a_silent_stream_gets_comments_between_its_events(start_bridge, servicer, route):
    url, body, headers = ROUTES[route]
    heard = asyncio.Queue()  # an item for each comment that the client has received

    async def wait_for_two_comments_each_time(reply):
        await reply.accept()
        for text in ("New", " York", None):
            for _ in range(2):
                await heard.get()
            await (reply.say(text) if text else reply.complete())

    servicer.script = wait_for_two_comments_each_time
    bridge = await start_bridge(stream_comment_seconds=0.05)
    content, num_comments = b"", 0
    async with asyncio.timeout(20), bridge.client.stream("POST", url, json=body, headers=headers) as response:
        async for chunk in response.aiter_bytes():
            content += chunk
            for _ in range(content.count(COMMENT) - num_comments):
                heard.put_nowait(None)
            num_comments = content.count(COMMENT)
    parts = [part for part in content.split(b"\n\n") if part]
    comments = [index for index, part in enumerate(parts) if part == COMMENT.strip()]
    assert len(comments) >= 6 and comments[0] == 0
    assert all(part.startswith(b"data: ") for index, part in enumerate(parts) if index not in comments)


async def test_a_stream_that_is_never_silent_has_no_comments(start_bridge, servicer):
    bridge = await start_bridge(stream_comment_seconds=1)
    servicer.script = silent_for(0.05, *"abcdefghijklmnopqrstuvwx")
    assert b":" not in [line[:1] for line in (await bridge.ask(STREAM)).content.splitlines()]


async def test_a_tool_call_that_is_held_back_is_silence(start_bridge, servicer):
    async def hold_back(reply):
        await reply.accept()
        for _ in range(12):
            await asyncio.sleep(0.02)
            await reply.say("")
        call = pb.ToolCall(id="call_1", name="f", arguments="{}")
        await reply.context.write(pb.RunResponse(delta=pb.Delta(tool_calls=[call])))
        await reply.complete()

    bridge = await start_bridge(stream_comment_seconds=0.1)
    servicer.script = hold_back
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    text = (await bridge.ask({**CHAT, "tools": tools}, url="/v1/chat/completions")).text
    assert ": keep-alive" in text.partition("call_1")[0]


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"stream_comment_seconds": 0}, {}),
        ({"stream_comment_seconds": 0.02, "profile": "2023-11"}, {}),
        ({"stream_comment_seconds": 0.02}, {"tailrace-profile": "2023-11"}),
    ],
    ids=["the setting is 0", "the bridge's profile is 2023-11", "the request's profile is 2023-11"],
)
async def test_there_are_no_comments_if(start_bridge, servicer, settings, headers):
    bridge = await start_bridge(**settings)
    servicer.script = silent_for(0.1, "New")
    assert COMMENT not in (await bridge.ask(STREAM, headers=headers)).content


async def test_a_complete_reply_has_no_comments(start_bridge, servicer):
    bridge = await start_bridge(stream_comment_seconds=0.02)
    servicer.script = silent_for(0.1, "New")
    assert (await bridge.ask({"prompt": "hi"})).json()["result"]["response"] == "New"


async def test_nothing_follows_the_end_of_a_stream_on_its_connection(start_bridge, servicer):
    bridge = await start_bridge(stream_comment_seconds=0.03)
    servicer.script = silent_for(0.05, "New")
    reader, writer = await bridge.open(STREAM)
    async with asyncio.timeout(5):
        assert COMMENT in await reader.readuntil(b"\r\n0\r\n\r\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await reader.read(1)
    writer.close()


async def test_a_client_that_disconnects_in_the_silence_ends_the_comments(start_bridge, servicer, caplog):
    bridge = await start_bridge(stream_comment_seconds=0.03)

    async def wait_in_queue(reply):
        await reply.accept()
        await reply.forever()

    servicer.script = wait_in_queue
    with caplog.at_level(logging.WARNING):
        reader, writer = await bridge.open(STREAM)
        async with asyncio.timeout(5):
            await reader.readuntil(COMMENT)
            writer.close()
            await servicer.cancelled.wait()
        await asyncio.sleep(0.1)
    timers = [timer for timer in asyncio.get_running_loop()._scheduled if "_CommentedStream" in repr(timer)]
    assert all(timer.cancelled() for timer in timers)
    assert caplog.records == []


async def test_a_failure_after_silence_is_still_the_last_event(start_bridge, servicer):
    async def hang(reply):
        await reply.accept()
        await reply.forever()

    servicer.script = hang
    bridge = await start_bridge(stream_comment_seconds=0.05, request_timeout_seconds=0.3)
    *comments, event = (await bridge.ask(STREAM)).text.removesuffix("\n\n").split("\n\n")
    assert set(comments) == {": keep-alive"}
    assert json.loads(event.removeprefix("data: "))["errors"][0]["code"] == 3007


async def test_a_comment_is_not_the_first_event_of_the_metrics(start_bridge, servicer):
    bridge = await start_bridge(stream_comment_seconds=0.02)
    servicer.script = silent_for(0.15, "New")
    await bridge.ask(STREAM)
    async with asyncio.timeout(5):
        while not (found := first_events(bridge)):
            await asyncio.sleep(0.01)
    assert found > 0.14


def first_events(bridge):
    """Return the sum of the times to the first event, in seconds."""
    text = generate_latest(bridge.metrics.registry).decode()
    return sum(value for name, value in samples(text).items() if "first_event" in name and "_sum" in name)
