"""500 clients on eight slots: each gets the end of its reply, memory stays flat, and a second account is not delayed."""

import asyncio
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.e2e.stack import Stack
from tests.reliability.client import DONE, Ending, Exchange, ask, post, run_path
from tests.reliability.watch import SERVICES, Memory, assert_alive, settled_metrics
from tests.support.processes import free_address

pytestmark = pytest.mark.reliability

NUM_CLIENTS = 500
NUM_SLOTS = 8
LOAD_SECONDS = float(os.environ.get("LOAD_SECONDS", "120"))
ARRIVAL_SECONDS = min(5.0, LOAD_SECONDS / 10)
# The first half of the load may grow caches. From then on memory is flat.
WARM_UP = 0.5
MOST_GROWTH = 0.05
BASELINE_SECONDS = 10.0
CROWD, STEADY = "crowd", "steady"  # accounts
LEAVES, READS_SLOWLY, SENDS_MALFORMED = 0.20, 0.10, 0.05
LONGEST_PAUSE_SECONDS = 5.0

# The server's log at an admission: the number of admissions since the request's arrival, itself included. With all slots
# in use, it is the number of the freed slot that the request got.
ADMITTED = re.compile(r"admitted (?P<id>\S+) account '(?P<account>\S*)', position (?P<position>\d+)$", re.MULTILINE)
LATEST_POSITION = 2
# Ratio of times to the first token: under load to those with eight busy slots and an empty queue.
MOST_MEDIAN_RATIO, MOST_WORST_RATIO = 2.0, 5.0

MALFORMED = [
    post(run_path(CROWD), b'{"prompt": "where is'),
    post(run_path(CROWD), b"\xff\xfe\x00" * 50),
    post(run_path(CROWD), {"prompt": "hi", "max_tokens": "many"}),
    post(run_path(CROWD), {"messages": [{"role": "user"}] * 100}),
    post(run_path(CROWD), {"prompt": "the " * 600, "raw": True}),
    post(run_path(CROWD, "@cf/no/such"), {"prompt": "hi"}),
    post("/client/v4/accounts/crowd/no/such/route", {"prompt": "hi"}),
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: many\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
]


@dataclass
class Load:
    """Results of the clients, and the state of the processes afterwards."""

    stack: Stack
    memory: Memory
    endings: Counter[tuple[str, Ending]] = field(default_factory=Counter)
    by_id: dict[str, Ending] = field(default_factory=dict)  # requests that the server has, or may have, accepted
    counted: dict[str, float] = field(default_factory=dict)  # by the server itself, after the end of the load
    baseline: list[float] = field(default_factory=list)  # seconds to the first token of the second account
    steady: list[float] = field(default_factory=list)
    steady_ids: list[str] = field(default_factory=list)
    unsteady: list[bytes] = field(default_factory=list)  # incomplete answers of the second account
    flat_from: float = 0.0  # monotonic
    answers_again_seconds: float = 0.0

    def count(self, kind: str, exchange: Exchange, ending: Ending) -> None:
        self.endings[kind, ending] += 1
        if exchange.request_id and exchange.status == 200:
            self.by_id[exchange.request_id] = ending


def body(dice: random.Random) -> dict[str, object]:
    """Return a run with a prompt and a greedy reply of up to 200 tokens each. Greedy replies end only at max_tokens."""
    return {
        "prompt": "the " * dice.choice((1, 5, 20, 60, 200)),
        "max_tokens": dice.choice((8, 16, 32, 64, 200)),
        "stream": dice.random() < 0.8,
        "temperature": 0,
    }


async def client(load: Load, number: int, until: float) -> None:
    dice = random.Random(number)
    address = load.stack.http_address
    await asyncio.sleep(dice.uniform(0, ARRIVAL_SECONDS))
    while time.monotonic() < until:
        kind, share = "plain", dice.random()
        request, buffer_bytes = post(run_path(CROWD), body(dice)), 0
        if share < SENDS_MALFORMED:
            kind, request = "malformed", dice.choice(MALFORMED)
        elif share < SENDS_MALFORMED + READS_SLOWLY:
            kind, buffer_bytes = "slow", 1024
        elif share < SENDS_MALFORMED + READS_SLOWLY + LEAVES:
            kind = "leaves"
        exchange = await Exchange.send(address, request, buffer_bytes=buffer_bytes)
        match kind:
            case "leaves":
                ending = await leave_early(exchange, dice)
            case "slow":
                ending = await exchange.read_rest(bytes_at_once=100, pause_seconds=0.05)
            case _:
                ending = await exchange.read_rest()
        load.count(kind, exchange, ending)
        if exchange.status == 429:
            await asyncio.sleep(exchange.retry_after)


async def leave_early(exchange: Exchange, dice: random.Random) -> Ending:
    """Disconnect at a random moment: before the request is accepted, while it waits, or while it streams."""
    try:
        async with asyncio.timeout(dice.uniform(0, LONGEST_PAUSE_SECONDS)):
            if await exchange.read_head():
                await exchange.read_events(dice.randrange(1, 9))
    except TimeoutError:
        pass
    return exchange.leave()


async def steady_client(load: Load, times: list[float], until: float) -> None:
    """Send one small request at a time from the second account."""
    small = {"prompt": "hello", "max_tokens": 8, "stream": True, "temperature": 0}
    while time.monotonic() < until:
        exchange = await ask(load.stack.http_address, small, account=STEADY)
        load.steady_ids.append(exchange.request_id)
        if exchange.ending is Ending.COMPLETED and DONE in exchange.body and exchange.first_event_seconds:
            times.append(exchange.first_event_seconds)
        else:
            load.unsteady.append(exchange.head + exchange.body)


async def busy_client(load: Load, number: int, until: float) -> None:
    dice = random.Random(number)
    while time.monotonic() < until:
        await ask(load.stack.http_address, body(dice), account=CROWD)


async def sample(memory: Memory) -> None:
    while True:
        memory.sample()
        await asyncio.sleep(0.5)


async def run_load(stack: Stack, metrics_address: str) -> Load:
    load = Load(stack, Memory(stack))
    until = time.monotonic() + BASELINE_SECONDS
    busy = [busy_client(load, number, until) for number in range(NUM_SLOTS)]
    await asyncio.gather(*busy, steady_client(load, load.baseline, until))
    until = time.monotonic() + LOAD_SECONDS
    load.flat_from = until - (1 - WARM_UP) * LOAD_SECONDS
    sampling = asyncio.create_task(sample(load.memory))
    clients = [client(load, number, until) for number in range(NUM_CLIENTS)]
    await asyncio.gather(*clients, steady_client(load, load.steady, until))
    sampling.cancel()
    started = time.monotonic()
    await ask(stack.http_address, {"prompt": "hello", "max_tokens": 1})
    load.answers_again_seconds = time.monotonic() - started
    load.counted = await settled_metrics(metrics_address)
    return load


@pytest.fixture(scope="module")
def load(start_stack, report) -> Iterator[Load]:
    # The queue has space for all, so that only requests with reject_if_busy are refused.
    metrics_address = free_address()
    settings = {
        "TAILRACE_MAX_RUNNING_SEQS": str(NUM_SLOTS),
        "TAILRACE_MAX_WAITING_SEQS": str(NUM_CLIENTS + 100),
        "TAILRACE_METRICS_ADDRESS": metrics_address,
    }
    with start_stack(context=512, sequence=256, server=settings) as stack:
        load = asyncio.run(run_load(stack, metrics_address))
        endings = ", ".join(f"{kind} {ending.value} {count}" for (kind, ending), count in sorted_endings(load))
        report(f"load: {load.endings.total()} requests: {endings}")
        for name, times in (("eight busy slots", load.baseline), ("500 clients", load.steady)):
            if times:
                milliseconds = [1000 * seconds for seconds in times]
                median, worst = statistics.median(milliseconds), max(milliseconds)
                report(f"second account, {name}: {len(times)} requests, TTFT {median:.0f} ms, worst {worst:.0f} ms")
        yield load


def sorted_endings(load: Load) -> list[tuple[tuple[str, Ending], int]]:
    return sorted(load.endings.items(), key=lambda item: (item[0][0], item[0][1].value))


def test_no_process_dies_and_the_next_request_is_answered(load):
    assert_alive(load.stack)
    assert load.answers_again_seconds < 1


def test_every_connected_client_gets_the_end_of_its_request(load):
    assert load.endings.total() > NUM_CLIENTS
    for (kind, ending), count in load.endings.items():
        assert (ending is Ending.LEFT) == (kind == "leaves"), (kind, ending, count)
        assert ending is not Ending.BROKEN, (kind, count)
        assert kind != "malformed" or ending is Ending.ERROR
    assert load.endings["plain", Ending.COMPLETED] > NUM_CLIENTS


def test_every_accepted_run_has_the_end_that_its_client_saw(load):
    expected = {
        Ending.COMPLETED: {"completed"},
        # A reply may be complete when its client disconnects.
        Ending.LEFT: {"cancelled", "completed"},
    }
    outcomes: dict[str, list[str]] = {}
    for run in load.stack.wait_for_runs(len(load.by_id), timeout_seconds=10):
        outcomes.setdefault(run.request_id, []).append(run.outcome)
    assert all(len(ends) == 1 for ends in outcomes.values())
    for request_id, ending in load.by_id.items():
        assert outcomes[request_id][0] in expected[ending], (request_id, ending, outcomes[request_id])


def test_the_servers_counters_agree(load):
    counted = load.counted
    assert counted["tailrace_requests_accepted_total"] == counted["tailrace_requests_ended_total"]
    logged = counted["tailrace_requests_ended_total"] + counted.get("tailrace_requests_refused_total", 0)
    outcomes = Counter(run.outcome for run in load.stack.wait_for_runs(int(logged), timeout_seconds=10))
    for outcome in ("completed", "cancelled"):
        # Requests cancelled before their acceptance are counted as refused.
        refused = counted.get(f"tailrace_requests_refused_total {outcome}", 0)
        assert counted[f"tailrace_requests_ended_total {outcome}"] + refused == outcomes[outcome]
    assert counted["tailrace_requests_running"] == counted["tailrace_requests_waiting"] == 0
    assert counted["tailrace_kv_blocks_in_use"] == 0


@pytest.mark.parametrize("service", SERVICES)
def test_the_log_contains_no_prompt(load, service):
    log = load.stack.log(service)
    assert log.count("\n") > NUM_CLIENTS
    assert "the the" not in log and "hello" not in log


@pytest.mark.parametrize("service", SERVICES)
def test_memory_is_flat_after_the_first_minute(load, service, report):
    growth, first = load.memory.growth(service, after=load.flat_from)
    report(f"load, {service}: {first:.0f} MiB after the warm-up, then at most {growth:+.1%}")
    assert growth <= MOST_GROWTH


def test_each_request_of_the_second_account_succeeds(load):
    assert not load.unsteady
    assert load.steady


def test_the_second_account_gets_the_second_free_slot_at_the_latest(load):
    log = load.stack.log("inference_server")
    positions = {found["id"]: int(found["position"]) for found in ADMITTED.finditer(log) if found["account"] == STEADY}
    assert set(positions) == set(load.steady_ids)
    assert max(positions.values()) <= LATEST_POSITION


def test_the_second_account_waits_hardly_longer_than_without_load(load):
    assert statistics.median(load.steady) < MOST_MEDIAN_RATIO * statistics.median(load.baseline)
    assert max(load.steady) < MOST_WORST_RATIO * max(load.baseline)
