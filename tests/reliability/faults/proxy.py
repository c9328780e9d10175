"""A TCP proxy between two processes that a test can disconnect, block and restore."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.processes import free_address


class Proxy:
    """Forwards TCP from its own address to another."""

    def __init__(self, target: str) -> None:
        self.address = free_address()
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()

    async def heal(self) -> None:
        """Forward everything, including data that was held back in silence."""
        self._passes.set()
        if self._server is None:
            host, _, port = self.address.rpartition(":")
            self._server = await asyncio.start_server(self._connected, host, int(port))

    async def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Forward nothing, and keep connections open, as a network that drops all packets does."""
        self._passes.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        # A test may end while the proxy still forwards.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._passes.wait()
            host, _, port = self._target.rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            self._writers.add(far_writer)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
            self._writers.discard(far_writer)
        writer.close()
        self._writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        await self._passes.wait()
        writer.close()


@asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    """Run a proxy before `target` (host:port) that forwards everything."""
    between = Proxy(target)
    await between.heal()
    try:
        yield between
    finally:
        between._passes.set()
        await between.cut()
