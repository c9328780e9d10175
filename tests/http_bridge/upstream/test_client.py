"""The gRPC client by itself: leaving a run ends its call."""

import asyncio

import grpc
import pytest

from http_bridge.settings.bridge import Settings
from http_bridge.upstream.client import Upstream
from http_bridge.upstream.tls import Credentials
from tailrace.v1.inference_pb2 import RunRequest


@pytest.fixture
async def upstream(backend):
    upstream = Upstream((backend.address,), Credentials(Settings()))
    yield upstream
    await upstream.close()


async def talk_forever(reply):
    await reply.accept()
    await reply.say("New")
    await reply.forever()


async def test_leaving_a_run_cancels_its_call_even_if_the_events_are_kept(upstream, servicer):
    servicer.script = talk_forever
    async with upstream.run(RunRequest(), request_id="r", timeout_seconds=5) as events:
        await anext(events)
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()
    assert events is not None


async def test_exception_within_a_run_cancels_its_call(upstream, servicer):
    servicer.script = talk_forever
    with pytest.raises(ZeroDivisionError) as kept:
        async with upstream.run(RunRequest(), request_id="r", timeout_seconds=5) as events:
            await anext(events)
            raise ZeroDivisionError
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()
    assert kept.traceback


async def test_a_status_after_the_acceptance_is_not_retried(upstream, servicer):
    async def accept_and_stop(reply):
        await reply.accept()
        await reply.refuse(grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")

    async def run():
        with pytest.raises(grpc.aio.AioRpcError):
            async with upstream.run(RunRequest(), request_id="r", timeout_seconds=5) as events:
                await anext(events)

    servicer.script = accept_and_stop
    # In parallel, so that in some of them both have arrived before the bridge reads.
    await asyncio.gather(*(run() for _ in range(50)))
    assert len(servicer.requests) == 50


async def test_the_conversation_id_is_forwarded(bridge, servicer):
    seen = []

    async def look(reply):
        seen.append(dict(reply.context.invocation_metadata()).get("x-session-affinity"))
        await reply.accept()
        await reply.complete()

    servicer.script = look
    for session in ("a-1", "\u00e9"):
        await bridge.ask(headers={"x-session-affinity": session.encode()})
    assert seen == ["a-1", None]
