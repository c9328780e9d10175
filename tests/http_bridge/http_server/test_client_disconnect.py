"""A client that disconnects cancels its call at every stage of the request."""

import asyncio

import grpc
import pytest

STREAM = {"prompt": "hi", "stream": True}
PLAIN = {"prompt": "hi"}


async def before_acceptance(reply):
    await reply.forever()


async def in_the_queue(reply):
    await reply.accept()
    await reply.forever()


async def while_generating(reply):
    await reply.accept()
    await reply.start()
    await reply.say("New")
    await reply.forever()


@pytest.mark.parametrize("body", [STREAM, PLAIN], ids=["stream", "json"])
@pytest.mark.parametrize("script", [before_acceptance, in_the_queue, while_generating])
@pytest.mark.parametrize("way", ["close", "abort"])
async def test_a_closed_connection_cancels_the_call_immediately(bridge, servicer, body, script, way):
    servicer.script = script
    _, writer = await bridge.open(body)
    await servicer.entered.wait()
    await asyncio.sleep(0.1)
    writer.close() if way == "close" else writer.transport.abort()
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


async def test_a_closed_connection_ends_the_retries(bridge, servicer, monkeypatch):
    monkeypatch.setattr("http_bridge.upstream.client.RETRY_PAUSES", (60, 60))
    servicer.script = lambda reply: reply.refuse(grpc.StatusCode.UNAVAILABLE)
    _, writer = await bridge.open(PLAIN)
    await servicer.entered.wait()
    writer.transport.abort()
    async with asyncio.timeout(20):
        while bridge.metrics.registry.get_sample_value("tailrace_http_requests_in_flight", {"route": "run"}):
            await asyncio.sleep(0.01)
    assert len(servicer.requests) == 1


async def test_a_client_that_disconnects_within_its_body_starts_no_run(bridge, servicer):
    _, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    writer.write(b"POST /client/v4/accounts/a/ai/run/m HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{")
    await asyncio.sleep(0.05)
    writer.transport.abort()
    assert (await bridge.ask()).status_code == 200
    assert len(servicer.requests) == 1


async def test_a_complete_reply_is_not_cancelled(bridge, servicer):
    for body in (STREAM, PLAIN):
        await bridge.ask(body)
    await asyncio.sleep(0.2)
    assert not servicer.cancelled.is_set()
