"""Full load for ten minutes: afterwards both processes have the memory of its first minute, and no block in use."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.e2e.stack import Stack
from tests.reliability.client import Ending, Exchange, ask
from tests.reliability.watch import MIB, SERVICES, Held, Memory, assert_alive, held, metrics, settled_metrics
from tests.support.processes import free_address

pytestmark = pytest.mark.reliability

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
# The first minute of load: threads start, caches fill, and the allocator's pools grow.
WARM_UP_SECONDS = SOAK_SECONDS / 10
NUM_CLIENTS = 24  # eight slots are always in use
MOST_GROWTH = 0.05
# Allows for closing connections, and for threads that a pool may still start.
SLACK = 4


@dataclass
class Soak:
    stack: Stack
    memory: Memory
    endings: Counter[Ending] = field(default_factory=Counter)
    flat_from: float = 0.0  # monotonic
    before: dict[str, Held] = field(default_factory=dict)
    after: dict[str, Held] = field(default_factory=dict)
    counted_before: dict[str, float] = field(default_factory=dict)
    counted_after: dict[str, float] = field(default_factory=dict)
    most_blocks: float = 0.0


async def client(soak: Soak, number: int, until: float) -> None:
    """Send new prompts, so that the prefix cache is evicted. One of four requests disconnects in the middle."""
    dice = random.Random(number)
    while time.monotonic() < until:
        words = dice.choices(("the", "city", "york", "program", "people", "time"), k=dice.choice((5, 40, 200)))
        body = {
            "prompt": " ".join(words),
            "max_tokens": dice.choice((8, 64, 200)),
            "stream": dice.random() < 0.8,
            "temperature": dice.choice((0, 1)),
        }
        exchange = await Exchange.run(soak.stack.http_address, body, account=f"account-{number % 3}")
        if dice.random() < 0.25:
            await exchange.read_head()
            await exchange.read_events(dice.randrange(1, 20))
            soak.endings[exchange.leave()] += 1
        else:
            soak.endings[await exchange.read_rest()] += 1


async def observe(soak: Soak, metrics_address: str) -> None:
    while True:
        soak.memory.sample()
        counted = await asyncio.to_thread(metrics, metrics_address)
        soak.most_blocks = max(soak.most_blocks, counted["tailrace_kv_blocks_in_use"])
        await asyncio.sleep(1)


async def at_rest(soak: Soak, metrics_address: str) -> tuple[dict[str, Held], dict[str, float]]:
    """Return the processes' resources and the server's metrics without load, once connections are closed."""
    await ask(soak.stack.http_address, {"prompt": "hello", "max_tokens": 1})
    counted = await settled_metrics(metrics_address)
    return {service: await resting(soak.stack, service) for service in SERVICES}, counted


async def resting(stack: Stack, service: str) -> Held:
    """Return the resources of a process when its descriptors and threads have not changed for a second, or after 20 s."""
    found = held(stack, service)
    for _ in range(20):
        await asyncio.sleep(1)
        before, found = found, held(stack, service)
        if (before.descriptors, before.threads) == (found.descriptors, found.threads):
            break
    return found


async def run_soak(stack: Stack, metrics_address: str) -> Soak:
    soak = Soak(stack, Memory(stack))
    until = time.monotonic() + WARM_UP_SECONDS
    await asyncio.gather(*(client(soak, number, until) for number in range(NUM_CLIENTS)))
    soak.before, soak.counted_before = await at_rest(soak, metrics_address)
    soak.flat_from = time.monotonic()
    observing = asyncio.create_task(observe(soak, metrics_address))
    until = time.monotonic() + SOAK_SECONDS - WARM_UP_SECONDS
    await asyncio.gather(*(client(soak, NUM_CLIENTS + number, until) for number in range(NUM_CLIENTS)))
    observing.cancel()
    soak.after, soak.counted_after = await at_rest(soak, metrics_address)
    return soak


@pytest.fixture(scope="module")
def soak(start_stack, report) -> Iterator[Soak]:
    metrics_address = free_address()
    with start_stack(context=512, sequence=256, server={"TAILRACE_METRICS_ADDRESS": metrics_address}) as stack:
        soak = asyncio.run(run_soak(stack, metrics_address))
        endings = ", ".join(f"{ending.value} {count}" for ending, count in soak.endings.items())
        report(f"soak: {SOAK_SECONDS:.0f} s, {soak.endings.total()} requests: {endings}")
        for service in SERVICES:
            report(f"soak, {service}: {told(soak.before[service])}; at the end {told(soak.after[service])}")
        yield soak


def told(held: Held) -> str:
    return f"{held.rss / MIB:.0f} MiB, {held.descriptors} descriptors, {held.threads} threads"


@pytest.mark.timeout(SOAK_SECONDS + 300)
def test_no_process_dies_and_no_reply_breaks_off(soak):
    assert_alive(soak.stack)
    assert set(soak.endings) <= {Ending.COMPLETED, Ending.LEFT}
    assert soak.endings[Ending.COMPLETED] > NUM_CLIENTS


@pytest.mark.parametrize("service", SERVICES)
def test_descriptors_and_threads_return_to_their_start(soak, service):
    before, after = soak.before[service], soak.after[service]
    assert after.descriptors <= before.descriptors + SLACK
    assert after.threads <= before.threads + SLACK


@pytest.mark.parametrize("service", SERVICES)
def test_memory_returns_to_its_start_and_is_flat_meanwhile(soak, service):
    before, after = soak.before[service], soak.after[service]
    assert after.rss <= before.rss * (1 + MOST_GROWTH)
    growth, _ = soak.memory.growth(service, after=soak.flat_from, window=(SOAK_SECONDS - WARM_UP_SECONDS) / 9)
    assert growth <= MOST_GROWTH


def test_no_block_and_no_slot_stays_in_use(soak):
    assert soak.most_blocks > 0
    for name in ("tailrace_kv_blocks_in_use", "tailrace_requests_running", "tailrace_requests_waiting"):
        assert (soak.counted_before[name], soak.counted_after[name]) == (0, 0), name
    ends = soak.counted_after["tailrace_requests_ended_total"]
    assert soak.counted_after["tailrace_requests_accepted_total"] == ends == len(soak.stack.runs())
