"""Limits of connections: time for headers, body and idling, speed of reading, and number."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager, suppress

import pytest

from tests.http_bridge.conftest import RUN_URL

HEALTHZ = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
OK = b"HTTP/1.1 200 OK"
BODY = b'{"prompt": "hi", "stream": true}'
HEAD = f"POST {RUN_URL} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()


@asynccontextmanager
async def connection(bridge, first=b""):
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
        writer.write(first)
        yield reader, writer
        writer.close()


async def ended(reader):
    """Return status and envelope of the answer before the bridge closed the connection. None if there was no answer."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    if not head:
        return None
    assert b"connection: close" in head.lower()
    (error,) = json.loads(body)["errors"]
    return int(head.split()[1]), error["code"], head.lower()


async def closed(reader):
    """Wait for the end of the connection, or for the reset if data was still in flight."""
    with suppress(ConnectionResetError):
        assert await reader.read() == b""


async def until_accepted(bridge):
    """Wait until a new connection is served."""
    async with asyncio.timeout(10):
        while True:
            async with connection(bridge, HEALTHZ) as (reader, _):
                if (await reader.readline()).startswith(OK):
                    return
            await asyncio.sleep(0.02)


def frozen(bridge, request):
    """Return a client that does not read. Its receive buffer is small, so that the bridge soon has to wait."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", bridge.port))
    client.sendall(request)
    return client


@pytest.mark.parametrize("begin", [b"GET /healthz HTTP/1.1\r\nx: ", HEALTHZ])
async def test_headers_must_be_complete_in_time(start_bridge, begin):
    bridge = await start_bridge(header_timeout_seconds=0.2)
    async with connection(bridge, begin) as (reader, writer):
        if begin == HEALTHZ:  # those of a second request on the same connection too
            await reader.readuntil(b"}")
            writer.write(b"GET /")
        dripping = asyncio.create_task(drip(writer))
        assert (await ended(reader))[:2] == (408, 3007)
        dripping.cancel()


async def drip(writer):
    while True:
        await asyncio.sleep(0.05)
        writer.write(b"a")


async def test_a_silent_connection_is_closed_without_an_answer(start_bridge):
    bridge = await start_bridge(header_timeout_seconds=0.1)
    async with connection(bridge) as (reader, _):
        assert await ended(reader) is None


async def test_a_connection_is_kept_between_requests_for_the_idle_time(start_bridge):
    bridge = await start_bridge(idle_timeout_seconds=1, header_timeout_seconds=0.1)
    async with connection(bridge, HEALTHZ) as (reader, writer):
        for _ in range(2):
            assert (await reader.readuntil(b"}")).startswith(OK)
            await asyncio.sleep(0.2)  # longer than the time for headers, which has not begun yet
            writer.write(HEALTHZ)
        assert (await reader.readuntil(b"}")).startswith(OK)
        assert await ended(reader) is None


async def test_a_body_must_be_complete_in_time(start_bridge, servicer):
    bridge = await start_bridge(body_timeout_seconds=0.2)
    async with connection(bridge, HEAD) as (reader, writer):
        dripping = asyncio.create_task(drip(writer))
        assert (await reader.readline()).split()[1] == b"408"
        assert b'"code":3007' in await reader.readuntil(b'"messages":[]}')
        await closed(reader)  # the unread rest of the body has a time limit too
        dripping.cancel()
    assert not servicer.requests


async def test_an_unread_body_must_end_in_time_too(start_bridge):
    bridge = await start_bridge(body_timeout_seconds=0.2)
    async with connection(bridge, HEALTHZ.replace(b"host:", b"content-length: 99999\r\nhost:")) as (reader, writer):
        assert (await reader.readuntil(b"}")).startswith(OK)
        dripping = asyncio.create_task(drip(writer))
        await closed(reader)
        dripping.cancel()


async def test_headers_have_a_maximum_length_in_one_piece_or_many(start_bridge):
    bridge = await start_bridge(max_header_bytes=2000)
    for size, status in ((1900, b"200"), (2000, b"400"), (9000, b"400")):
        request = HEALTHZ.replace(b"host: localhost", b"host: %b" % (b"x" * size))
        for step in (len(request), 500):
            async with connection(bridge) as (reader, writer):
                for start in range(0, len(request), step):
                    writer.write(request[start : start + step])
                    await asyncio.sleep(0.01 if step == 500 else 0)
                assert (await reader.readline()).split()[1] == status, (size, step)


async def test_invalid_http_gets_the_routers_error(bridge):
    async with connection(bridge, b"hello\r\n\r\n") as (reader, _):
        assert (await ended(reader))[:2] == (400, 6003)


CHUNKED = f"POST {RUN_URL} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("request_bytes", "clause"),
    [
        (b"GET /healthz HTTP/1.1\r\n\r\n", "HTTP/1.1 requires a Host header"),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "more than one Host header"),
        (HEAD.replace(b"content-length", b"content-length: 5\r\ncontent-length"), "two Content-Length headers"),
        (HEAD.replace(b"content-length: ", b"content-length: x"), "Content-Length is not a number"),
        (CHUNKED.replace(b"chunked", b"gzip"), "Transfer-Encoding is chunked"),
        (CHUNKED + b"zz\r\n{}\r\n", "the body's chunks are malformed"),
        (b"hello\r\n\r\n", "this is not HTTP/1.1"),
        (HEALTHZ.replace(b"host", b"x: " + b"y" * 70_000 + b"\r\nhost"), "this is not HTTP/1.1, or request line and"),
    ],
)
async def test_the_fault_of_an_invalid_request_is_named(bridge, request_bytes, clause):
    async with connection(bridge, request_bytes) as (reader, _):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    (error,) = json.loads(body)["errors"]
    assert (head.split()[1], error["code"]) == (b"400", 6003)
    assert error["message"].startswith("Invalid request headers: ") and clause in error["message"]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://localhost/healthz", "other"),
        ("HTTP://127.0.0.1:8787/healthz?x", "127.0.0.1"),
        ("http://localhost", "x"),
    ],
)
async def test_a_target_with_scheme_and_host_is_served(bridge, target, host):
    async with connection(bridge, f"GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()) as (reader, _):
        assert (await reader.readline()).startswith(OK)


@pytest.mark.parametrize("stream", [b"", b', "stream": true'])
async def test_a_client_that_stops_sending_before_the_reply_gets_a_sentence(bridge, servicer, stream):
    async def wait(reply):
        await reply.accept() if not stream else None
        await reply.forever()

    servicer.script = wait
    body = b'{"prompt": "hi"%b}' % stream
    async with connection(bridge, HEAD.replace(b"%d" % len(BODY), b"%d" % len(body)) + body) as (reader, writer):
        await servicer.entered.wait()
        writer.write_eof()
        head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
        assert (head.split()[1], json.loads(answer)["errors"][0]["code"]) == (b"400", 6003)
        assert b"closed its side of the connection before the reply" in answer
        await servicer.cancelled.wait()


async def test_one_connection_too_many_is_refused_and_the_others_continue(start_bridge):
    bridge = await start_bridge(max_connections=2)
    async with connection(bridge) as (first, to_first), connection(bridge) as (_, to_second):
        await asyncio.sleep(0.05)
        async with connection(bridge, HEALTHZ) as (reader, _):
            status, code, head = await ended(reader)
            assert (status, code) == (503, 7009)
            assert b"retry-after: 1" in head and b"content-type: application/json" in head
        to_first.write(HEALTHZ)
        assert (await first.readline()).startswith(OK)
        to_second.close()
        await until_accepted(bridge)


async def test_a_client_that_does_not_read_is_disconnected(start_bridge, servicer):
    said = 0

    async def endless(reply):
        nonlocal said
        await reply.accept()
        while True:
            await reply.say("x" * 10_000)
            said += 10_000

    servicer.script = endless
    bridge = await start_bridge(write_timeout_seconds=0.3)
    client = frozen(bridge, HEAD + BODY)
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()
    client.close()
    assert said < 50_000_000  # only the buffers of kernels and gRPC are filled


async def test_closing_does_not_wait_for_a_client_that_does_not_read(start_bridge, servicer):
    async def long(reply):
        await reply.accept()
        for _ in range(10):
            await reply.say("x" * 1_000_000)
        await reply.complete()

    servicer.script = long
    bridge = await start_bridge(write_timeout_seconds=0.2)
    body = b'{"prompt": "hi"}'
    client = frozen(bridge, f"POST {RUN_URL} HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await servicer.entered.wait()
    async with asyncio.timeout(5):
        while bridge.metrics.registry.get_sample_value("tailrace_http_connections"):
            await asyncio.sleep(0.02)
    client.settimeout(1)
    total = 0
    while data := client.recv(100_000):  # the bytes that the kernel had already accepted
        total += len(data)
    client.close()
    assert total < 10_000_000


async def test_a_client_that_reads_slowly_gets_everything(start_bridge, servicer):
    async def long(reply):
        await reply.accept()
        for _ in range(300):
            await reply.say("x" * 10_000)
        await reply.complete()

    servicer.script = long
    bridge = await start_bridge(write_timeout_seconds=0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port, limit=4096)
    writer.write(HEAD + BODY)
    total, last = 0, b""
    async with asyncio.timeout(10):
        while not last.endswith(b"0\r\n\r\n"):
            data = await reader.read(100_000)
            total, last = total + len(data), (last + data)[-20:]
            await asyncio.sleep(0.001)
    writer.close()
    assert total > 3_000_000


@pytest.mark.parametrize("nested", ["[" * 100_000 + "]" * 100_000, '{"a":' * 500 + "1" + "}" * 500])
async def test_a_deeply_nested_body_is_a_wrong_field(bridge, servicer, nested):
    for body in (nested, f'{{"prompt": "\\ud83d\\ude00", "x": {nested}}}'):
        response = await bridge.client.post(RUN_URL, content=body)
        assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5006)
    assert not servicer.requests


async def test_the_published_schemas_have_the_bridges_own_limits(start_bridge):
    bridge = await start_bridge(max_messages=2, max_schema_depth=3)
    turn = {"role": "user", "content": "hi"}
    assert (await bridge.ask({"messages": [turn] * 2})).status_code == 200
    assert "'/messages' must hold at most 2 items" in (await bridge.ask({"messages": [turn] * 3})).text
    described = (await bridge.client.get("/openapi.json")).json()["paths"]["/v1/chat/completions"]["post"]
    fields = described["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert fields["messages"]["maxItems"] == 2
    assert fields["response_format"]["then"]["properties"]["json_schema"]["maxDepth"] == 3
