"""Three servers behind one bridge: requests go to free slots, and a server that dies, leaves or joins loses no others.

The tiny model pauses in each forward pass, as if a GPU computed it, so that three servers fit on two cores.
"""

import asyncio
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tailrace.v1 import inference_pb2_grpc
from tests.e2e.stack import Stack
from tests.reliability.client import Ending, Exchange
from tests.support.processes import ROOT, free_address
from tests.support.servers import chat, write_catalog

pytestmark = pytest.mark.reliability

NUM_SERVERS = 3
NUM_CLIENTS = 15  # of 24 slots
LOAD_SECONDS = 12.0
PASS_SECONDS, SLOW_PASS_SECONDS = 0.010, 0.040
# Share of the mean, for servers of equal speed.
MOST_UNEVEN = 0.15
# Share of each other server's requests, for a server with passes that take four times as long.
MOST_OF_A_SLOW_ONE = 0.85
NEW_WORK_SECONDS = 10.0
ADMITTED = re.compile(r"admitted (?P<id>\S+) account")


@dataclass
class Replicas:
    stack: Stack
    folder: Path
    addresses: list[str]

    def start(self, number: int, pass_seconds: float = PASS_SECONDS) -> None:
        self.set_pass(number, pass_seconds)
        settings = {
            "TAILRACE_GRPC_ADDRESS": self.addresses[number],
            "TAILRACE_FAULT_FILE": str(self._fault(number)),
            # Connections are replaced all the time, which clients must not notice.
            "TAILRACE_GRPC_CONNECTION_AGE_SECONDS": "2",
        }
        self.stack.spawn("tests.reliability.faults.faulty_server", name=f"server {number}", **settings)

    def set_pass(self, number: int, seconds: float) -> None:
        self._fault(number).write_text(f"slow {seconds}")

    def send(self, number: int, signal_number: signal.Signals) -> None:
        self.stack.process(f"server {number}").send_signal(signal_number)

    def admitted(self, number: int) -> list[str]:
        """Return the ids of the requests that got a slot on a server."""
        return ADMITTED.findall(self.stack.log(f"server {number}"))

    def shares(self, since: list[int]) -> list[float]:
        """Return the share of each server, in multiples of an even share."""
        counts = [len(self.admitted(number)) - since[number] for number in range(NUM_SERVERS)]
        return [count * NUM_SERVERS / sum(counts) for count in counts]

    def counts(self) -> list[int]:
        return [len(self.admitted(number)) for number in range(NUM_SERVERS)]

    async def until_serving(self, number: int) -> None:
        async with grpc.aio.insecure_channel(self.addresses[number]) as channel, asyncio.timeout(60):
            health = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    if (await health.Check(health_pb2.HealthCheckRequest())).status == 1:
                        return
                except grpc.aio.AioRpcError:
                    pass
                await asyncio.sleep(0.05)

    def _fault(self, number: int) -> Path:
        return self.folder / f"fault-{number}"


@dataclass
class Load:
    """Clients that send one request after the other. `endings` is by request id."""

    address: str
    endings: dict[str, Ending] = field(default_factory=dict)
    refused: list[bytes] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the clients. The end of the block waits for the end of every reply."""
        stopping = asyncio.Event()
        clients = [asyncio.create_task(self._client(random.Random(number), stopping)) for number in range(NUM_CLIENTS)]
        try:
            yield
        finally:
            stopping.set()
            async with asyncio.timeout(60):
                await asyncio.gather(*clients)

    async def _client(self, dice: random.Random, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            body = {"prompt": "hello", "temperature": 0, "stream": True, "max_tokens": dice.randint(20, 60)}
            exchange = await Exchange.run(self.address, body)
            ending = await exchange.read_rest()
            if exchange.status == 200:
                self.endings[exchange.request_id] = ending
            else:
                self.refused.append(exchange.body)

    @property
    def broken(self) -> set[str]:
        return {request_id for request_id, ending in self.endings.items() if ending is not Ending.COMPLETED}


@pytest.fixture(scope="module")
def replicas(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    catalog = write_catalog(folder / "tiny.toml", tiny_model("llama-2"), context=64, sequence=400)
    stack = Stack(folder, catalog.read_text())
    replicas = Replicas(stack, folder, [free_address() for _ in range(NUM_SERVERS)])
    try:
        for number in range(NUM_SERVERS):
            replicas.start(number)
        stack.spawn("http_bridge", TAILRACE_GRPC_ADDRESS=",".join(replicas.addresses))
        stack.wait_until_answered(f"http://{stack.http_address}/readyz")
        yield replicas
    finally:
        stack.stop()


@pytest.fixture
async def load(replicas: Replicas) -> Load:
    await asyncio.gather(*(replicas.until_serving(number) for number in range(NUM_SERVERS)))
    await asyncio.sleep(3)  # the bridge has polled the servers and has load reports
    return Load(replicas.stack.http_address)


async def test_equal_servers_get_equal_shares(replicas, load, report):
    before = replicas.counts()
    async with load.running():
        await asyncio.sleep(LOAD_SECONDS)
    shares = replicas.shares(before)
    report(f"shares of three equal servers: {', '.join(f'{share:.2f}' for share in shares)}")
    assert not load.broken and not load.refused
    assert all(abs(share - 1) <= MOST_UNEVEN for share in shares), shares


async def test_a_slower_server_gets_less(replicas, load, report):
    replicas.set_pass(0, SLOW_PASS_SECONDS)
    try:
        async with load.running():
            await asyncio.sleep(3)  # until the slow server's load is reported
            before = replicas.counts()
            await asyncio.sleep(LOAD_SECONDS)
            shares = replicas.shares(before)
    finally:
        replicas.set_pass(0, PASS_SECONDS)
    report(f"shares with the first four times as slow: {', '.join(f'{share:.2f}' for share in shares)}")
    assert not load.broken and not load.refused
    assert shares[0] < MOST_OF_A_SLOW_ONE * min(shares[1:]), shares


async def test_any_client_with_the_examples_service_config_uses_all_servers(replicas, load, report):
    before = replicas.counts()
    options = [("grpc.service_config", (ROOT / "examples" / "service_config.json").read_text())]
    target = f"ipv4:{','.join(replicas.addresses)}"

    async def client(stub) -> None:
        for _ in range(10):
            events = [event async for event in stub.Run(chat(max_tokens=30, temperature=0), timeout=60)]
            assert events[-1].HasField("completed")

    async with grpc.aio.insecure_channel(target, options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await asyncio.gather(*(client(stub) for _ in range(6)))
    shares = replicas.shares(before)
    report(f"shares of a gRPC client's 60 calls: {', '.join(f'{share:.2f}' for share in shares)}")
    assert min(shares) > 0.5, shares


async def test_a_killed_server_loses_only_its_own_streams(replicas, load, report):
    async with load.running():
        await asyncio.sleep(2)
        replicas.send(1, signal.SIGKILL)
        await asyncio.sleep(4)
    replicas.start(1)
    report(f"killed one of three: {len(load.broken)} of {len(load.endings)} replies lost, {len(load.refused)} refused")
    # A request that waited for a slot of the killed server is in no server's log of admissions.
    assert load.broken and load.broken.isdisjoint({*replicas.admitted(0), *replicas.admitted(2)})
    assert not load.refused


async def test_a_drained_server_loses_no_stream(replicas, load, report):
    async with load.running():
        await asyncio.sleep(2)
        replicas.send(2, signal.SIGTERM)
        code = await asyncio.to_thread(replicas.stack.process("server 2").wait, 30)
        await asyncio.sleep(2)
    replicas.start(2)
    report(f"drained one of three: {len(load.endings)} replies, all whole")
    assert code == 0
    assert not load.broken and not load.refused


async def test_a_new_server_gets_work_within_ten_seconds(replicas, load, report):
    replicas.send(0, signal.SIGKILL)
    await asyncio.to_thread(replicas.stack.process("server 0").wait, 10)
    async with load.running():
        await asyncio.sleep(3)
        before = len(replicas.admitted(0))
        replicas.start(0)
        await replicas.until_serving(0)
        serving = time.monotonic()
        while len(replicas.admitted(0)) == before and time.monotonic() - serving < NEW_WORK_SECONDS:
            await asyncio.sleep(0.05)
        seconds = time.monotonic() - serving
    report(f"a server that came had work after {seconds:.1f} s")
    assert len(replicas.admitted(0)) > before
    assert not load.broken and not load.refused
