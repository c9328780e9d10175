"""Envoy with deploy/envoy/envoy.yaml before two real servers with the default model."""

import asyncio
import signal
import time
from dataclasses import dataclass, field

import grpc
import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.deploy.conftest import CONFIGURATION, MODEL, STEP_SECONDS, Front, envoy_binary

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]


@dataclass
class Reply:
    """A stream as its client saw it."""

    arrivals: list[float] = field(default_factory=list)  # arrival times of its deltas, in seconds
    tokens: int = 0
    is_completed: bool = False


def numbers(max_tokens: int) -> pb.RunRequest:
    """Return a request with a greedy reply that ends only at max_tokens."""
    text = ", ".join(str(number) for number in range(1, 30)) + ","
    return pb.RunRequest(model=MODEL, text=text, sampling=pb.Sampling(temperature=0.0, max_tokens=max_tokens))


async def collect(front: Front, max_tokens: int) -> Reply:
    """Read the stream to its end. Raises grpc.aio.AioRpcError if it fails."""
    reply = Reply()
    async for event in front.stub.Run(numbers(max_tokens)):
        if event.HasField("delta"):
            reply.arrivals.append(time.monotonic())
        elif event.HasField("completed"):
            reply.is_completed, reply.tokens = True, event.completed.usage.completion_tokens
    return reply


async def total(front: Front, metric: str) -> float:
    return sum([await one.metric(metric) for one in front.replicas])


async def wait_for(front: Front, metric: str, value: float, *, seconds: float = 5.0) -> None:
    """Wait until the sum of the metric over both servers is `value`."""
    async with asyncio.timeout(seconds):
        while await total(front, metric) != value:
            await asyncio.sleep(0.05)


async def test_the_configuration_is_valid_without_deprecated_fields():
    child = await asyncio.create_subprocess_exec(
        envoy_binary(),
        *("--mode", "validate", "-c", CONFIGURATION),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await child.communicate()
    assert child.returncode == 0, output.decode()
    assert b"[warning]" not in output, output.decode()


async def test_each_delta_passes_immediately(front):
    for one in front.replicas:
        one.set_fault(f"slow {STEP_SECONDS}")
    reply = await collect(front, 40)
    assert reply.is_completed
    gaps = [later - earlier for earlier, later in zip(reply.arrivals, reply.arrivals[1:], strict=False)]
    assert len(gaps) >= 20
    # As far apart as they were generated, so none was buffered.
    assert sorted(gaps)[len(gaps) // 2] > STEP_SECONDS / 2


async def test_streams_go_to_the_server_with_the_fewest(front):
    for one in front.replicas:
        one.set_fault(f"slow {STEP_SECONDS}")
    streams = []
    for number in range(1, 9):
        streams.append(asyncio.create_task(collect(front, 120)))
        await wait_for(front, "requests_accepted_total", number)
    assert [await one.metric("requests_accepted_total") for one in front.replicas] == [4, 4]
    assert all(reply.is_completed for reply in await asyncio.gather(*streams))


async def test_a_client_that_cancels_frees_its_slot(front):
    for one in front.replicas:
        one.set_fault(f"slow {STEP_SECONDS}")
    call = front.stub.Run(numbers(1000))
    await call.read()
    await wait_for(front, "requests_running", 1)
    call.cancel()
    await wait_for(front, "requests_running", 0, seconds=2)
    await wait_for(front, "requests_ended_total cancelled", 1)


async def test_a_stream_of_more_than_15_seconds_completes(front):
    for one in front.replicas:
        one.set_fault(f"slow {STEP_SECONDS}")
    max_tokens = int(18 / STEP_SECONDS)
    reply = await collect(front, max_tokens)
    assert (reply.is_completed, reply.tokens) == (True, max_tokens)
    assert reply.arrivals[-1] - reply.arrivals[0] > 15


async def test_a_server_that_is_not_serving_gets_no_streams(front):
    stalled, other = front.replicas
    stalled.set_fault("hang")
    # Repeat until one is on the server whose model hangs. That server then reports NOT_SERVING.
    held = [asyncio.create_task(collect(front, 20)) for _ in range(8)]
    await front.wait_until_healthy(1, seconds=10)
    before = await stalled.metric("requests_accepted_total")
    assert before > 0
    replies = await asyncio.gather(*(collect(front, 5) for _ in range(10)))
    assert all(reply.is_completed for reply in replies)
    assert await stalled.metric("requests_accepted_total") == before
    stalled.set_fault("")
    assert all(reply.is_completed for reply in await asyncio.gather(*held))
    await front.wait_until_healthy(2, seconds=10)


async def test_a_server_removed_from_the_name_finishes_its_streams(front):
    leaving, staying = front.replicas
    for one in front.replicas:
        one.set_fault(f"slow {STEP_SECONDS}")
    running = [asyncio.create_task(collect(front, 250)) for _ in range(8)]
    await wait_for(front, "requests_accepted_total", 8)
    # As Kubernetes ends a pod: it removes the address first, then sends SIGTERM.
    front.names.addresses = [staying.host]
    await front.wait_until_healthy(1, seconds=10)
    share = await leaving.metric("requests_accepted_total")
    assert await leaving.metric("requests_running") == share > 0
    for _ in range(5):
        assert (await collect(front, 2)).is_completed
    assert await leaving.metric("requests_accepted_total") == share
    assert all(reply.is_completed for reply in await asyncio.gather(*running))


async def test_a_new_address_behind_the_name_gets_work_within_10_seconds(front):
    new, old = front.replicas
    front.names.addresses = [old.host]
    await front.wait_until_healthy(1, seconds=10)
    assert (await collect(front, 2)).is_completed
    front.names.addresses = [new.host, old.host]
    await front.wait_until_healthy(2, seconds=10)
    assert all(reply.is_completed for reply in await asyncio.gather(*(collect(front, 20) for _ in range(8))))
    assert await new.metric("requests_accepted_total") > 0


async def test_a_draining_server_loses_no_stream(front):
    leaving = front.replicas[0]
    for one in front.replicas:
        one.set_fault(f"slow {STEP_SECONDS}")
    running = [asyncio.create_task(collect(front, 120)) for _ in range(8)]
    await wait_for(front, "requests_accepted_total", 8)
    assert await leaving.metric("requests_accepted_total") > 0
    leaving.process.send(signal.SIGTERM)
    # Immediately, before Envoy notices: it retries refused streams on the other server.
    for _ in range(20):
        assert (await collect(front, 2)).is_completed
    assert all(reply.is_completed for reply in await asyncio.gather(*running))
    assert await leaving.process.exit_code() == 0
    assert (await collect(front, 2)).is_completed


async def test_a_killed_server_loses_only_its_own_streams(front):
    dying = front.replicas[0]
    for one in front.replicas:
        one.set_fault(f"slow {STEP_SECONDS}")
    running = [asyncio.create_task(collect(front, 120)) for _ in range(8)]
    await wait_for(front, "requests_accepted_total", 8)
    share = await dying.metric("requests_accepted_total")
    dying.process.send(signal.SIGKILL)
    for _ in range(20):
        assert (await collect(front, 2)).is_completed
    ends = await asyncio.gather(*running, return_exceptions=True)
    failed = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
    assert len(failed) == share
    # Envoy resets a stream that has begun, and gRPC calls that INTERNAL.
    assert {error.code() for error in failed} == {grpc.StatusCode.INTERNAL}


async def test_envoy_drains_without_losing_streams(front):
    for one in front.replicas:
        one.set_fault(f"slow {STEP_SECONDS}")
    running = [asyncio.create_task(collect(front, 200)) for _ in range(4)]
    await wait_for(front, "requests_accepted_total", 4)
    await front.admin("/drain_listeners?graceful", "POST")
    replies = await asyncio.gather(*running)
    assert all(reply.is_completed for reply in replies)
    # Longer than Envoy's drain time, after which it accepts no new connection.
    assert min(reply.arrivals[-1] - reply.arrivals[0] for reply in replies) > 3
    filtered = "/stats?filter=http.grpc.downstream_rq_active"
    async with asyncio.timeout(5):
        while (await front.admin(filtered)).split()[-1] != b"0":
            await asyncio.sleep(0.05)
    with pytest.raises(grpc.aio.AioRpcError):
        # On the open connection, replies still arrive, with the request to close it.
        for _ in range(3):
            assert (await collect(front, 2)).is_completed
