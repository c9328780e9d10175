"""A name server for a single name with addresses that a test changes, as a headless Service has."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

_HEADER_BYTES = 12
_TYPE_A = 1


@dataclass
class Names(asyncio.DatagramProtocol):
    """Answers every query for IPv4 addresses with `addresses`, and other queries with none."""

    addresses: list[str] = field(default_factory=list)
    port: int = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, query: bytes, sender: Any) -> None:
        # Skip the name, which ends with an empty label. Type and class follow.
        end = query.index(b"\0", _HEADER_BYTES) + 1
        addresses = self.addresses if int.from_bytes(query[end : end + 2]) == _TYPE_A else []
        # The name is a pointer to the query's name. A TTL of 0 prevents caching.
        answers = [b"\xc0\x0c\0\1\0\1" + bytes(4) + b"\0\4" + socket.inet_aton(address) for address in addresses]
        header = query[:2] + b"\x85\x80\0\1" + len(answers).to_bytes(2) + bytes(4)
        self._transport.sendto(header + query[_HEADER_BYTES : end + 4] + b"".join(answers), sender)


@asynccontextmanager
async def name_server() -> AsyncIterator[Names]:
    """Run the name server on a free UDP port of loopback."""
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
    try:
        yield names
    finally:
        transport.close()
