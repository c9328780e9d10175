"""A light client of the REST interface: bytes over a socket, so that hundreds of them leave the CPU to the servers."""

import asyncio
import enum
import json
import socket
import time

from tests.support.servers import MODEL

DONE = b"data: [DONE]\n\n"
_PATIENCE_SECONDS = 120.0


class Ending(enum.Enum):
    """The end of a request, as its client sees it."""

    COMPLETED = "completed"
    ERROR = "error"  # an error status, or an error as the last event of a stream
    LEFT = "left"  # by the client
    BROKEN = "broken"  # the connection ended before the reply, without an error


def run_path(account: str, model: str = MODEL) -> str:
    return f"/client/v4/accounts/{account}/ai/run/{model}"


def post(path: str, body: object) -> bytes:
    """Return a request's bytes. `body` is bytes, or a value that becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


class Exchange:
    """A request on its own connection, with a test that controls how slowly it reads and when it disconnects."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._sent = time.monotonic()
        self.status = 0
        self.request_id = ""
        self.retry_after = 0
        self.head = b""
        self.body = b""  # as received, with the framing of its chunks
        self.first_event_seconds: float | None = None  # after the request was sent

    @classmethod
    async def send(cls, address: str, request: bytes, *, buffer_bytes: int = 0) -> "Exchange":
        """Connect and send `request`. `buffer_bytes` is the size of the receive buffer; 0 is the system's default."""
        host, _, port = address.rpartition(":")
        connection = socket.socket()
        connection.setblocking(False)
        if buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=connection, limit=buffer_bytes or 2**16)
        writer.write(request)
        return cls(reader, writer)

    @classmethod
    async def run(cls, address: str, body: object, *, account: str = "acc", buffer_bytes: int = 0) -> "Exchange":
        return await cls.send(address, post(run_path(account), body), buffer_bytes=buffer_bytes)

    async def read_head(self) -> int:
        """Read status and headers. Returns the status; 0 if the connection ended before."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                self.head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0
        self.status = int(self.head.split(None, 2)[1])
        self.request_id = self._header(b"cf-ai-req-id")
        self.retry_after = int(self._header(b"retry-after") or 0)
        return self.status

    async def read_events(self, count: int) -> None:
        """Read until `count` events have arrived, or the reply ends."""
        while self.body.count(b"data: ") < count and await self._read(2**16):
            pass

    async def read_rest(self, *, bytes_at_once: int = 2**16, pause_seconds: float = 0.0) -> Ending:
        """Read to the end of the reply, including an unread head, and close the connection."""
        if self.status or await self.read_head():
            while await self._read(bytes_at_once):
                await asyncio.sleep(pause_seconds)
        self._writer.close()
        return self.ending

    def leave(self) -> Ending:
        self._writer.transport.abort()
        return Ending.LEFT

    @property
    def is_stream(self) -> bool:
        return b"transfer-encoding: chunked" in self.head.lower()

    @property
    def is_whole(self) -> bool:
        """True if the reply is complete by its length or its last chunk."""
        if not self.status:
            return False
        if self.is_stream:
            return self.body.endswith(b"\r\n0\r\n\r\n")
        return len(self.body) >= int(self._header(b"content-length") or 0)

    @property
    def ending(self) -> Ending:
        if not self.is_whole:
            return Ending.BROKEN
        if self.status != 200:
            return Ending.ERROR
        if not self.is_stream or DONE in self.body:
            return Ending.COMPLETED
        return Ending.ERROR if b'"errors":[{' in self.body else Ending.BROKEN

    async def _read(self, at_most: int) -> bool:
        """Read some bytes. Returns False at the end."""
        if self.is_whole:
            return False
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                data = await self._reader.read(at_most)
        except ConnectionError:
            return False
        if self.first_event_seconds is None and b"data: " in data:
            self.first_event_seconds = time.monotonic() - self._sent
        self.body += data
        return bool(data)

    def _header(self, name: bytes) -> str:
        for line in self.head.split(b"\r\n"):
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip().decode()
        return ""


async def ask(address: str, body: object, *, account: str = "acc") -> Exchange:
    """Send a run and read the whole answer."""
    exchange = await Exchange.run(address, body, account=account)
    await exchange.read_rest()
    return exchange


async def open_streams(
    address: str, body: dict[str, object], *, num_slots: int, total: int, num_events: int = 1
) -> list[Exchange]:
    """Open `total` streams. Returns when all are accepted and those that hold a slot have sent `num_events` events.

    The streams without a slot follow when the slots are taken. Otherwise one of them might be admitted first, and the wait
    for an event of another stream would last until a reply has ended.
    """
    exchanges: list[Exchange] = []
    for count in (num_slots, total - num_slots):
        opened = [await Exchange.run(address, body) for _ in range(count)]
        await asyncio.gather(*(exchange.read_head() for exchange in opened))
        if not exchanges:
            await asyncio.gather(*(exchange.read_events(num_events) for exchange in opened))
        exchanges += opened
    return exchanges
