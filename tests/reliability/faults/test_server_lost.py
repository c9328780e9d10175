"""The server or its network fails: streams end with an error, and the bridge serves again as soon as the server does."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.reliability.client import DONE, Ending, Exchange, ask, open_streams
from tests.reliability.faults.proxy import proxy
from tests.support.processes import free_address

pytestmark = pytest.mark.reliability

NUM_STREAMS = 16
SERVES_AGAIN_SECONDS = 2.0
# The bridge pings a server that is silent for 30 s and waits 10 s for the answer (http_bridge/upstream/client.py).
KEEPALIVE_SECONDS = 40.0
# The tiny model's greedy replies end only at max_tokens.
LONG = {"prompt": "hello", "temperature": 0, "stream": True, "max_tokens": 3500}
SHORT = {"prompt": "hello", "temperature": 0, "stream": True, "max_tokens": 4}


@asynccontextmanager
async def streams(http_address: str) -> AsyncIterator[list[Exchange]]:
    """Open streams. Yields when as many as there are slots have begun. Closes them at the end."""
    exchanges = await open_streams(http_address, LONG, num_slots=8, total=NUM_STREAMS, num_events=2)
    yield exchanges
    for exchange in exchanges:
        exchange.leave()


async def seconds_until_all_end_with_an_error(exchanges: list[Exchange], *, at_most: float) -> float:
    started = time.monotonic()
    async with asyncio.timeout(at_most):
        endings = await asyncio.gather(*(exchange.read_rest() for exchange in exchanges))
    assert set(endings) <= {Ending.ERROR, Ending.BROKEN}
    assert not any(DONE in exchange.body for exchange in exchanges)
    return time.monotonic() - started


async def seconds_until_served(http_address: str) -> float:
    """Return the seconds until the bridge completes a run. Until then it answers with 503."""
    started = time.monotonic()
    while (answer := await ask(http_address, SHORT)).ending is not Ending.COMPLETED:
        assert answer.status == 503, answer.head
        assert time.monotonic() - started < 30
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def until_ready(grpc_address: str) -> None:
    """Wait until the server reports SERVING to a separate client."""
    async with asyncio.timeout(60):
        while not await is_serving(grpc_address):
            await asyncio.sleep(0.02)


async def is_serving(grpc_address: str) -> bool:
    request = health_pb2.HealthCheckRequest(service="tailrace.v1.InferenceService")
    async with grpc.aio.insecure_channel(grpc_address) as channel:  # a new channel has no backoff
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=1)
        except grpc.aio.AioRpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture(scope="module")
def stack(start_stack):
    with start_stack(context=64, sequence=4000) as stack:
        yield stack


@pytest.fixture
async def between(stack):
    async with proxy(stack.grpc_address) as between:
        yield between


@pytest.fixture
async def far_bridge(stack, between) -> str:
    """Start a bridge that reaches the server only through the proxy. Returns its address."""
    address = free_address()
    settings = {"TAILRACE_HTTP_ADDRESS": address, "TAILRACE_GRPC_ADDRESS": between.address}
    stack.spawn("http_bridge", name=f"bridge {address}", **settings)
    await asyncio.to_thread(stack.wait_until_answered, f"http://{address}/readyz")
    return address


async def test_a_killed_server_ends_each_stream_with_an_error(stack, report):
    bridge = stack.process("http_bridge")
    async with streams(stack.http_address) as exchanges:
        stack.process("inference_server").send_signal(signal.SIGKILL)
        ended = await seconds_until_all_end_with_an_error(exchanges, at_most=5)
    assert (await ask(stack.http_address, SHORT)).status == 503
    stack.process("inference_server").wait()
    stack.spawn("inference_server")
    await until_ready(stack.grpc_address)
    served = await seconds_until_served(stack.http_address)
    report(f"server killed: {NUM_STREAMS} streams ended after {ended:.2f} s, served {served:.2f} s after it was ready")
    assert served < SERVES_AGAIN_SECONDS
    assert bridge.poll() is None


async def test_a_cut_network_ends_each_stream_with_an_error(stack, between, far_bridge, report):
    async with streams(far_bridge) as exchanges:
        await between.cut()
        ended = await seconds_until_all_end_with_an_error(exchanges, at_most=5)
    assert (await ask(far_bridge, SHORT)).status == 503
    await between.heal()
    served = await seconds_until_served(far_bridge)
    report(f"network cut: {NUM_STREAMS} streams ended after {ended:.2f} s, served {served:.2f} s after it healed")
    assert served < SERVES_AGAIN_SECONDS


async def test_a_silent_network_ends_each_stream_within_the_keepalive(stack, between, far_bridge, report):
    num_runs = len(await asyncio.to_thread(stack.settled_runs))
    async with streams(far_bridge) as exchanges:
        between.silence()
        ended = await seconds_until_all_end_with_an_error(exchanges, at_most=KEEPALIVE_SECONDS + 5)
    await between.heal()
    served = await seconds_until_served(far_bridge)
    report(f"network silent: {NUM_STREAMS} streams ended after {ended:.1f} s, served {served:.2f} s after it healed")
    assert served < SERVES_AGAIN_SECONDS
    runs = await asyncio.to_thread(stack.wait_for_runs, num_runs + NUM_STREAMS, timeout_seconds=10)
    assert len(runs) >= num_runs + NUM_STREAMS
