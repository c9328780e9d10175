"""SIGTERM: running replies finish within the grace time, new requests are refused, and the exit code is 0."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tailrace.v1 import inference_pb2_grpc
from tests.e2e.stack import Stack
from tests.reliability.client import Ending, Exchange, ask, open_streams
from tests.support.servers import chat

pytestmark = pytest.mark.reliability

NUM_SLOTS = 8
NUM_STREAMS = 16
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
# The tiny model's greedy replies end only at max_tokens.
MIDDLING = {"prompt": "hello", "temperature": 0, "stream": True, "max_tokens": 400}
ENDLESS = {"prompt": "hello", "temperature": 0, "stream": True, "max_tokens": 4000}
# Time for endless streams (a health watch), the model's step, and the end of the process.
SLACK_SECONDS = 3.0


@asynccontextmanager
async def streams(stack: Stack, body: dict[str, object]) -> AsyncIterator[list[Exchange]]:
    """Open all streams. Yields when all are accepted, and as many as there are slots have begun."""
    exchanges = await open_streams(stack.http_address, body, num_slots=NUM_SLOTS, total=NUM_STREAMS)
    yield exchanges
    for exchange in exchanges:
        exchange.leave()


async def endings(exchanges: list[Exchange]) -> list[Ending]:
    return await asyncio.gather(*(exchange.read_rest() for exchange in exchanges))


async def exit_code(stack: Stack, service: str, *, within_seconds: float) -> int:
    return await asyncio.to_thread(stack.process(service).wait, within_seconds)


async def is_draining(stack: Stack, service: str) -> bool:
    """Return whether the first signal has had its effect: the server logs it, and the bridge accepts no more connections."""
    if service == "inference_server":
        return "stopping: " in stack.log(service)
    host, _, port = stack.http_address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("service", ["inference_server", "http_bridge"])
async def test_all_streams_are_finished_and_the_exit_code_is_0(start_stack, service):
    with start_stack(context=64, sequence=4000) as stack:
        async with streams(stack, MIDDLING) as exchanges:
            stack.process(service).send_signal(signal.SIGTERM)
            assert await endings(exchanges) == [Ending.COMPLETED] * NUM_STREAMS
        assert await exit_code(stack, service, within_seconds=SLACK_SECONDS) == 0
        # The server logs a reply's end after it has sent the end.
        runs = await asyncio.to_thread(stack.wait_for_runs, NUM_STREAMS, timeout_seconds=10)
        assert [run.outcome for run in runs] == ["completed"] * NUM_STREAMS


async def test_a_draining_server_is_not_serving_and_refuses_requests(start_stack):
    with start_stack(context=64, sequence=4000) as stack:
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel, streams(stack, ENDLESS):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            stack.process("inference_server").send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                assert (await watch.read()).status == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await inference_pb2_grpc.InferenceServiceStub(channel).Run(chat()).read()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            answer = await ask(stack.http_address, MIDDLING)
            assert (answer.status, b'"code":7009' in answer.body) == (503, True)


@pytest.mark.parametrize(
    ("service", "setting"),
    [
        ("inference_server", {"server": {"TAILRACE_SHUTDOWN_GRACE_SECONDS": "2"}}),
        ("http_bridge", {"bridge": {"TAILRACE_HTTP_SHUTDOWN_GRACE_SECONDS": "2"}}),
    ],
)
async def test_endless_streams_end_with_the_grace_time(start_stack, service, setting):
    with start_stack(context=64, sequence=4000, **setting) as stack:
        async with streams(stack, ENDLESS) as exchanges:
            started = time.monotonic()
            stack.process(service).send_signal(signal.SIGTERM)
            ended = await endings(exchanges)
        assert await exit_code(stack, service, within_seconds=SLACK_SECONDS) == 0
        assert 2 <= time.monotonic() - started < 2 + SLACK_SECONDS
        assert Ending.COMPLETED not in ended
        # Every accepted run reported its end to the client or, if that is gone, to the log.
        assert len(await asyncio.to_thread(stack.wait_for_runs, NUM_STREAMS, timeout_seconds=10)) == NUM_STREAMS


@pytest.mark.parametrize("service", ["inference_server", "http_bridge"])
async def test_a_second_signal_ends_the_process_immediately(start_stack, service):
    with start_stack(context=64, sequence=4000) as stack:
        async with streams(stack, ENDLESS) as exchanges:
            stack.process(service).send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                while not await is_draining(stack, service):
                    await asyncio.sleep(0.01)
            assert stack.process(service).poll() is None
            stack.process(service).send_signal(signal.SIGTERM)
            assert await exit_code(stack, service, within_seconds=SLACK_SECONDS) == 0
            assert Ending.COMPLETED not in await endings(exchanges)
