"""100,000 nearly valid requests to an instant model: none is a 5xx, none hangs, and memory does not grow."""

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import pytest

from tests.e2e.stack import Stack
from tests.reliability.client import Ending, ask
from tests.reliability.hostile.mutations import http_request, json_request, message
from tests.reliability.watch import MIB, SERVICES, Held, assert_alive, held

pytestmark = pytest.mark.reliability

NUM_REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "100000"))
SEED = int(os.environ.get("FUZZ_SEED", "20"))
NUM_AT_ONCE = 24
ANSWER_SECONDS = 30.0
# A request with a declared length that is far too large stays incomplete, so that the client has to time out.
INCOMPLETE_SECONDS = 0.5
# The fraction of requests after which memory must stay flat, and the allowed growth.
WARM_UP = 0.6
MOST_GROWTH = 0.05
SERVER_ERROR = re.compile(rb"HTTP/1\.1 5\d\d")
# Statuses that a client's mistake must never cause.
SERVER_CODES = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
Send = Callable[[bytes], Awaitable[str]]


class KeptAlive:
    """Connections to the bridge, each used until it is closed."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, request: bytes) -> str:
        """Return the status of a complete answer. Raises AssertionError if it is a 5xx or incomplete."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(request)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
                assert not head.startswith(b"http/1.1 5"), head
                if b"transfer-encoding: chunked" in head:
                    await self._reader.readuntil(b"\r\n0\r\n\r\n")
                else:
                    await self._reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        except asyncio.LimitOverrunError as error:
            raise AssertionError(f"an answer of more than {error.consumed} bytes") from None
        if b"connection: close" in head:
            self._writer.close()
            self._writer = None
        return head[9:12].decode()


async def send_once(address: str, request: bytes) -> str:
    """Send a request on its own connection until it is closed. Returns the first status, or a dash."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = b""
    try:
        while True:
            async with asyncio.timeout(INCOMPLETE_SECONDS):
                if not (data := await reader.read(2**16)):
                    break
            answer += data
    except (TimeoutError, ConnectionError):
        pass
    writer.transport.abort()
    assert not SERVER_ERROR.search(answer), answer
    return answer[9:12].decode() or "-"


async def call(run: grpc.aio.UnaryStreamMultiCallable, request: bytes) -> str:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            async for _ in run(request):
                pass
    except grpc.aio.AioRpcError as error:
        assert error.code() not in SERVER_CODES, (error.code(), error.details())
        return str(error.code().name)
    return "OK"


async def flood(make: Callable[[random.Random], bytes], senders: list[Send], count: int, seen: Counter[str]) -> None:
    """Send `count` requests by all senders in parallel. A failure's message contains the request."""

    async def send_many(number: int, send: Send) -> None:
        for index in range(number, count, len(senders)):
            request = make(random.Random(f"{SEED} {make.__name__} {index}"))
            try:
                seen[await send(request)] += 1
            except Exception as error:
                raise AssertionError(f"{make.__name__} {index}: {request[:3000]!r}: {error!r:.1000}") from error

    async with asyncio.TaskGroup() as group:
        for number, send in enumerate(senders):
            group.create_task(send_many(number, send))


@pytest.fixture(scope="module")
def instant(start_stack):
    """Start a stack with replies of at most 2 tokens that logs only errors, because log lines would be measured too."""
    quiet = {"TAILRACE_LOG_LEVEL": "error"}
    with start_stack(context=512, sequence=2, server=quiet, bridge=quiet) as stack:
        asyncio.run(flood(json_request, rest_senders(stack), 200, Counter()))
        yield stack


def rest_senders(stack: Stack) -> list[Send]:
    return [KeptAlive(stack.http_address).send for _ in range(NUM_AT_ONCE)]


async def assert_plain_request_works(stack: Stack) -> None:
    started = time.monotonic()
    answer = await ask(stack.http_address, {"prompt": "hello", "stream": True, "max_tokens": 2})
    assert answer.ending is Ending.COMPLETED, answer.head + answer.body
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("make", "share"),
    [(json_request, 0.6), (http_request, 0.15), (message, 0.25)],
    ids=["json", "http", "protobuf"],
)
async def test_every_request_gets_an_answer_that_is_not_a_server_error(instant, report, make, share):
    count = int(NUM_REQUESTS * share)
    seen: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(instant.grpc_address) as channel:
        run = channel.unary_stream("/tailrace.v1.InferenceService/Run")
        senders: dict[object, list[Send]] = {
            json_request: rest_senders(instant),
            http_request: [lambda request: send_once(instant.http_address, request)] * 4 * NUM_AT_ONCE,
            message: [lambda request: call(run, request)] * NUM_AT_ONCE,
        }
        started = time.monotonic()
        await flood(make, senders[make], int(count * WARM_UP), seen)
        warm = {service: held(instant, service) for service in SERVICES}
        await flood(make, senders[make], count - int(count * WARM_UP), seen)
        seconds = time.monotonic() - started
    report(f"fuzz, {make.__name__}: {count} requests, {count / seconds:.0f} a second: {dict(seen.most_common())}")
    assert_alive(instant)
    await assert_plain_request_works(instant)
    for service, before in warm.items():
        assert_has_not_grown(service, before, held(instant, service), report)


def assert_has_not_grown(service: str, before: Held, after: Held, report: Callable[[str], None]) -> None:
    report(f"fuzz, {service}: {before.rss / MIB:.0f} MiB, then {after.rss / MIB:.0f}; {after.descriptors} descriptors")
    assert after.rss <= before.rss * (1 + MOST_GROWTH)
    assert after.descriptors <= before.descriptors + NUM_AT_ONCE
