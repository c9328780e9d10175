"""Requests many streams from one HTTP server and records when their events arrive. Runs as a separate process.

Reads JSON from stdin and writes JSON to stdout. While the streams run, the client only stores the bytes and their
times, so that it takes little CPU time from the server. It parses the bytes afterwards.
"""

import asyncio
import json
import sys
import time
from typing import Any

from benchmarks.load.dialects import Dialect, dialect
from benchmarks.load.load import OUT_OF_TIME, Load, Outcome, Record, Request

_DONE = b"data: [DONE]"


class Stream(asyncio.Protocol):
    """A connection with a single request."""

    def __init__(self, request: bytes, progress: asyncio.Event) -> None:
        self._request = request
        self._progress = progress
        self._transport: asyncio.Transport | None = None
        self.start = 0.0
        self.reads: list[tuple[float, bytes]] = []
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.start = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.perf_counter(), data))
        self._progress.set()
        if _DONE in data and self._transport is not None:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._progress.set()
        if not self.ended.done():
            self.ended.set_result(None)

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _http(port: int, path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer any-token\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


async def ask(port: int, style: Dialect, load: Load) -> list[Record]:
    """Return a record for each request. The record of a request that did not end in time has an error.

    Counts reads of a connection, not events, for `Request.after_events`. The first read may contain only the header.
    """
    loop = asyncio.get_running_loop()
    progress = asyncio.Event()
    streams: list[Stream] = []
    failures: dict[int, str] = {}

    async def open_stream(request: Request) -> Stream:
        data = _http(port, *style.request(request))
        _, stream = await loop.create_connection(lambda: Stream(data, progress), "127.0.0.1", port)
        return stream

    try:
        async with asyncio.timeout(load.timeout_s):
            for request in load.requests:
                while any(len(stream.reads) <= request.after_events for stream in streams if request.after_events):
                    if all(stream.ended.done() for stream in streams):
                        break
                    progress.clear()
                    await progress.wait()
                streams.append(await open_stream(request))
                if load.sequential:
                    await streams[-1].ended
            await asyncio.gather(*(stream.ended for stream in streams))
    except TimeoutError:
        for number, stream in enumerate(streams):
            # The timeout cancels the futures that gather waits for, so a cancelled stream did not end in time either.
            if stream.ended.cancelled() or not stream.ended.done():
                failures[number] = f"{OUT_OF_TIME} {load.timeout_s:.0f} s"
            stream.stop()
    except OSError as error:
        failures[len(streams)] = f"no connection: {error}"
    records = [
        style.record(request, stream.start, stream.reads)
        for request, stream in zip(load.requests, streams, strict=False)
    ]
    records += [Record(start=0.0, error=failures.get(0, "was not started")) for _ in load.requests[len(records) :]]
    for number, failure in failures.items():
        records[number].error = failure
    return records


def main() -> None:
    question = json.load(sys.stdin)
    load = Load.from_json(question["load"])
    style = dialect(question["dialect"], question["fields"])
    before = time.process_time()
    records = asyncio.run(ask(question["port"], style, load))
    print(json.dumps(Outcome(records=records, client_cpu_s=time.process_time() - before).to_json()))


if __name__ == "__main__":
    main()
