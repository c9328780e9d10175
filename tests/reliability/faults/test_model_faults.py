"""The model's thread hangs or raises: health reports it, no client waits forever, and other requests continue."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.stack import Stack
from tests.reliability.client import Ending, Exchange, ask

pytestmark = pytest.mark.reliability

STALL_SECONDS, EXIT_SECONDS = 1.0, 3.0
# Allows for polling every tenth of the limit, a busy machine and a call.
GRACE_SECONDS = 1.0
LONG = {"prompt": "hello", "temperature": 0, "stream": True, "max_tokens": 1500}
SHORT = {"prompt": "hello", "temperature": 0, "stream": True, "max_tokens": 4}
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    path = tmp_path / "fault"
    path.write_text("")
    return path


@pytest.fixture
def stack(start_stack, fault: Path) -> Iterator[Stack]:
    settings = {
        "TAILRACE_FAULT_FILE": str(fault),
        "TAILRACE_STALL_SECONDS": str(STALL_SECONDS),
        "TAILRACE_STALL_EXIT_SECONDS": str(EXIT_SECONDS),
    }
    with start_stack(server=settings, server_module="tests.reliability.faults.faulty_server") as stack:
        yield stack


async def seconds_until_health(stack: Stack, status: int) -> float:
    started = time.monotonic()
    async with asyncio.timeout(30), grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while (await stub.Check(health_pb2.HealthCheckRequest())).status != status:
            await asyncio.sleep(0.02)
    return time.monotonic() - started


async def running_streams(stack: Stack) -> list[Exchange]:
    exchanges = [await Exchange.run(stack.http_address, LONG) for _ in range(8)]
    for exchange in exchanges:
        await exchange.read_head()
        await exchange.read_events(2)
    return exchanges


async def test_health_reports_a_hanging_model_that_recovers(stack, fault, report):
    exchanges = await running_streams(stack)
    fault.write_text("hang")
    seconds = await seconds_until_health(stack, NOT_SERVING)
    report(f"model hangs: health says so after {seconds:.2f} s (limit {STALL_SECONDS:g} s)")
    assert seconds < STALL_SECONDS + GRACE_SECONDS
    assert (await ask(stack.http_address, SHORT)).status == 503
    fault.write_text("")
    await seconds_until_health(stack, SERVING)
    assert {await exchange.read_rest() for exchange in exchanges} == {Ending.COMPLETED}
    assert (await ask(stack.http_address, SHORT)).ending is Ending.COMPLETED


async def test_a_model_that_hangs_for_too_long_ends_the_process(stack, fault, report):
    exchanges = await running_streams(stack)
    fault.write_text("hang")
    started = time.monotonic()
    endings = await asyncio.gather(*(exchange.read_rest() for exchange in exchanges))
    exit_code = await asyncio.to_thread(stack.process("inference_server").wait, 10)
    seconds = time.monotonic() - started
    report(f"model hangs for good: the process ended after {seconds:.2f} s (limit {STALL_SECONDS + EXIT_SECONDS:g} s)")
    assert (set(endings), exit_code) == ({Ending.ERROR}, 1)
    assert seconds < STALL_SECONDS + EXIT_SECONDS + 2 * GRACE_SECONDS
    assert "the process exits" in stack.log("inference_server")


async def test_a_failing_pass_fails_only_its_own_streams(stack, fault):
    exchanges = await running_streams(stack)
    fault.write_text("raise 1")
    assert {await exchange.read_rest() for exchange in exchanges} == {Ending.ERROR}
    assert (await ask(stack.http_address, SHORT)).ending is Ending.COMPLETED
    assert await seconds_until_health(stack, SERVING) < GRACE_SECONDS
    assert "ordered" not in "".join(str(exchange.body) for exchange in exchanges)


async def test_a_broken_model_ends_the_process(stack, fault):
    exchanges = await running_streams(stack)
    fault.write_text("raise 1000")
    assert {await exchange.read_rest() for exchange in exchanges} == {Ending.ERROR}
    assert await asyncio.to_thread(stack.process("inference_server").wait, 10) == 1
