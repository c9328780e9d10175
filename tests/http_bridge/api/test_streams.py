"""Streamed replies: their bytes, and when they are sent."""

import asyncio
import json
import re

import grpc

RUN_URL = "/client/v4/accounts/acc/ai/run/@cf/meta/llama-2-7b-chat-int8"
STREAM = {"prompt": "where is new york?", "stream": True}


async def test_stream_has_exactly_the_announced_bytes(bridge):
    response = await bridge.ask(STREAM)
    assert response.content.decode() == (
        'data: {"response":"New"}\n\n'
        'data: {"response":" York"}\n\n'
        'data: {"response":"\\n“é”"}\n\n'
        'data: {"response":"","usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}\n\n'
        "data: [DONE]\n\n"
    )


async def test_stream_headers_are_bare_and_forbid_buffering(bridge, servicer):
    headers = (await bridge.ask(STREAM)).headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["cf-ai-req-id"] == servicer.request_ids[0]


async def test_each_event_is_sent_immediately(bridge, servicer):
    go_on = asyncio.Event()

    async def wait_between(reply):
        await reply.accept()
        await reply.say("one")
        await go_on.wait()
        await reply.say("two")
        await reply.complete()

    servicer.script = wait_between
    async with asyncio.timeout(10), bridge.client.stream("POST", RUN_URL, json=STREAM) as response:
        chunks = response.aiter_bytes()
        assert await anext(chunks) == b'data: {"response":"one"}\n\n'
        go_on.set()
        assert await anext(chunks) == b'data: {"response":"two"}\n\n'


async def test_stream_opens_while_the_request_waits_in_the_queue(bridge, servicer):
    async def wait_in_queue(reply):
        await reply.accept()
        await reply.forever()

    servicer.script = wait_in_queue
    async with asyncio.timeout(10), bridge.client.stream("POST", RUN_URL, json=STREAM) as response:
        assert response.status_code == 200


async def test_a_server_without_acceptance_metadata_loses_no_events(bridge, servicer):
    async def no_metadata(reply):
        await reply.say("a")
        await reply.say("b")
        await reply.complete()

    servicer.script = no_metadata
    response = await bridge.ask(STREAM)
    assert response.text.startswith('data: {"response":"a"}\n\ndata: {"response":"b"}\n\ndata: {"response":"","usage"')


async def test_failure_in_a_stream_is_its_last_event_and_no_done_follows(bridge, servicer):
    async def fail(reply):
        await reply.accept()
        await reply.say("New")
        await reply.refuse(grpc.StatusCode.INTERNAL, "GENERATION_FAILED")

    servicer.script = fail
    response = await bridge.ask(STREAM)
    message = f"AiError: AiError: The model failed while generating this reply. ({servicer.request_ids[0]})"
    assert response.status_code == 200
    assert response.text == (
        'data: {"response":"New"}\n\n'
        f'data: {{"response":"","errors":[{{"code":3000,"message":"{message}"}}],"success":false}}\n\n'
    )


async def test_stream_that_ends_without_completed_is_a_failure(bridge, servicer):
    async def break_off(reply):
        await reply.accept()
        await reply.say("New")

    servicer.script = break_off
    events = (await bridge.ask(STREAM)).text.removesuffix("\n\n").split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["success"] is False
    assert "[DONE]" not in "".join(events)


async def test_deadline_within_a_stream_is_an_error_event(start_bridge, servicer):
    async def hang(reply):
        await reply.accept()
        await reply.say("New")
        await reply.forever()

    servicer.script = hang
    bridge = await start_bridge(request_timeout_seconds=0.3)
    assert '"errors":[{"code":3007,' in (await bridge.ask(STREAM)).text


async def test_a_killed_server_within_a_stream_is_an_error_event(bridge, backend, servicer):
    async def hang(reply):
        await reply.accept()
        await reply.say("New")
        await reply.forever()

    servicer.script = hang
    async with asyncio.timeout(3), bridge.client.stream("POST", RUN_URL, json=STREAM) as response:
        chunks = response.aiter_bytes()
        await anext(chunks)
        await backend.server.stop(None)
        assert b'"success":false' in await anext(chunks)


async def test_only_text_events_are_padded(start_bridge):
    bridge = await start_bridge(stream_padding=True)
    *texts, usage, done = (await bridge.ask(STREAM)).text.removesuffix("\n\n").split("\n\n")
    paddings = [json.loads(text.removeprefix("data: "))["p"] for text in texts]
    assert all(re.fullmatch("[a-z0-9]{1,50}", padding) for padding in paddings)
    assert len(set(paddings)) == 3
    assert '"p"' not in usage + done


async def test_text_is_always_a_string(bridge, servicer):
    texts = ["1", "null", "true", "\u2028"]

    async def count(reply):
        await reply.accept()
        for text in texts:
            await reply.say(text)
        await reply.complete()

    servicer.script = count
    lines = (await bridge.ask(STREAM)).text.splitlines()[: 2 * len(texts) : 2]
    assert [json.loads(line.removeprefix("data: "))["response"] for line in lines] == texts


async def test_a_client_that_stops_reading_pauses_the_stream(bridge, servicer):
    sent = 0

    async def flood(reply):
        nonlocal sent
        await reply.accept()
        while True:
            await reply.say("x" * 10_000)
            sent += 10_000

    servicer.script = flood
    reader, writer = await bridge.open(STREAM)
    before = -1
    async with asyncio.timeout(10):
        while sent == 0 or sent != before:
            before = sent
            await asyncio.sleep(0.2)
    assert sent < 50_000_000
    writer.transport.abort()
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


async def test_streams_run_concurrently(bridge):
    async with asyncio.timeout(10):
        responses = await asyncio.gather(*(bridge.ask(STREAM) for _ in range(20)))
    assert all(response.text.endswith("data: [DONE]\n\n") for response in responses)
