"""The benchmark's HTTP client against a server that answers too late."""

import asyncio

from benchmarks.load.client import ask
from benchmarks.load.dialects import WorkersAi
from benchmarks.load.load import OUT_OF_TIME, Load, Request


async def test_a_reply_that_does_not_end_in_time_has_that_as_its_error():
    ended = asyncio.Event()

    async def serve(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        load = Load(requests=[Request(max_tokens=1)], timeout_s=0.2)
        (record,) = await ask(port, WorkersAi({"model": "m"}), load)
        ended.set()
    assert record.error == f"{OUT_OF_TIME} 0 s"
