"""Resolves the names in TAILRACE_GRPC_ADDRESS. The server registry does so at each poll, even without open calls.

gRPC itself looks up a name only when a connection is lost, so it would never find a server that is added later.
"""

import asyncio
import ipaddress
import logging
import socket
from dataclasses import dataclass

from http_bridge.protocol.grpc_targets import GRPC_SCHEMES
from tailrace_shared.addresses import split_address

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """The address of one server.

    Attributes:
        target: ip:port, [ip]:port, or a target that gRPC resolves.
        name: Host name that was resolved to this address; empty if there was none.
    """

    target: str
    name: str = ""


class Addresses:
    """The addresses of all targets. gRPC itself resolves a name that could not be looked up yet."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        """Set the targets: host:port pairs, or one target in gRPC's notation. `refresh` looks up names in the pairs."""
        self._found = {target: _unresolved(target) for target in targets}
        self._names = [target for target in targets if _is_name(target)]
        self._missing: set[str] = set()

    @property
    def current(self) -> tuple[Address, ...]:
        """The addresses in the order of the targets, without duplicates."""
        return tuple(dict.fromkeys(address for addresses in self._found.values() for address in addresses))

    async def refresh(self) -> None:
        """Look up every name. A name that cannot be looked up keeps its last addresses."""
        await asyncio.gather(*(self._look_up(target) for target in self._names))

    async def _look_up(self, target: str) -> None:
        host, port = split_address(target)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            if target not in self._missing:
                logger.warning("the name %s cannot be looked up: %s", host, error.strerror)
            self._missing.add(target)
            return
        self._missing.discard(target)
        # Only one address family is used: a host with IPv4 and IPv6 addresses is one server, not two.
        family = min(family for family, *_ in found)
        ips = {str(sockaddr[0]) for kind, *_, sockaddr in found if kind == family}
        addresses = tuple(sorted(Address(_joined(ip, port), host) for ip in ips))
        if addresses != self._found[target]:
            logger.info("%s is %s", target, ", ".join(address.target for address in addresses))
            self._found[target] = addresses


def _unresolved(target: str) -> tuple[Address, ...]:
    return (Address(f"dns:///{target}" if _is_name(target) else target),)


def _is_name(target: str) -> bool:
    """Return True if the target is a name whose addresses can change. localhost is not such a name."""
    if target.startswith(GRPC_SCHEMES):
        return False
    host = split_address(target)[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def _joined(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
