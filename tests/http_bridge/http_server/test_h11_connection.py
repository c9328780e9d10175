"""Streams on the wire: chunks, reused connections, HTTP/1.0 clients, endless headers."""

import asyncio
import json

from tests.http_bridge.conftest import RUN_URL

BODY = json.dumps({"prompt": "where is new york?", "stream": True}).encode()
EVENTS = [
    'data: {"response":"New"}\n\n',
    'data: {"response":" York"}\n\n',
    'data: {"response":"\\n“é”"}\n\n',
    'data: {"response":"","usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}\n\ndata: [DONE]\n\n',
]
CHUNKS = b"".join(b"%x\r\n%b\r\n" % (len(event.encode()), event.encode()) for event in EVENTS) + b"0\r\n\r\n"


def request(version: str = "1.1") -> bytes:
    return f"POST {RUN_URL} HTTP/{version}\r\nhost: localhost\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY


async def connect(bridge) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", bridge.port)


async def test_each_event_is_a_chunk_and_the_stream_ends_with_the_empty_one(bridge):
    reader, writer = await connect(bridge)
    writer.write(request())
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        assert await reader.readexactly(len(CHUNKS)) == CHUNKS
    writer.close()


async def test_the_next_request_on_a_connection_has_its_own_framing(bridge):
    reader, writer = await connect(bridge)
    async with asyncio.timeout(5):
        for _ in range(2):
            writer.write(request())
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(CHUNKS)) == CHUNKS
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"content-length: 15" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(15) == b'{"status":"ok"}'
    writer.close()


async def test_client_of_http_1_0_gets_its_stream_without_chunks(bridge):
    reader, writer = await connect(bridge)
    writer.write(request("1.0"))
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert (await reader.read()).decode() == "".join(EVENTS)
    writer.close()


async def test_headers_without_an_end_are_refused(bridge):
    reader, writer = await connect(bridge)
    writer.write(b"GET /healthz HTTP/1.1\r\nx: " + b"x" * 70_000)
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
    writer.close()
