"""Opens the sockets of a service, and finds the program that listens on a port.

The host localhost stands for both loopback addresses, 127.0.0.1 and ::1, because some clients try only one of them. An
address that this machine does not have is left out.
"""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tailrace_shared.addresses import split_address
from tailrace_shared.variables import PREFIX

LOOPBACKS = ("127.0.0.1", "::1")
# The default port of wrangler dev, and of the bridge.
_WRANGLER_PORT = 8787
_WRANGLER_PROGRAM = "workerd"
_MISSING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_BACKLOG = 2048
# Attempts to find a port that is free on both loopback addresses, if the system selects it (port 0).
_ATTEMPTS = 20
_LISTEN = "0A"  # the state of a listening socket in /proc/net/tcp
_OTHER_PORT = 3  # distance from the port in use to the port that an error suggests


class PortInUse(Exception):
    """Another program listens on an address. `host` and `port` are that address."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.host = host
        self.port = port

    def explain(self, name: str, address: str) -> str:
        """Return two sentences for the user, without the last full stop.

        Args:
            name: Name of the variable with the address, without TAILRACE_.
            address: The variable's value, or its default.
        """
        holder = port_holder(self.port)
        by = f", by {holder}" if holder else ""
        if self.port == _WRANGLER_PORT and not holder:
            by = "; it is also the default port of wrangler dev"
        other = self.port - _OTHER_PORT if self.port > 60_000 else self.port + _OTHER_PORT
        example = f"{address.rpartition(':')[0]}:{other}"
        return (
            f"Port {self.port} ({PREFIX}{name}={address}) is in use already{by}. "
            f"Set {PREFIX}{name} to another address, for example {example}"
        )


def local_hosts(host: str) -> tuple[str, ...]:
    """Return the addresses for `host`: this machine's loopback addresses for localhost, otherwise `host` itself."""
    if host != "localhost":
        return (host,)
    return tuple(each for each in LOOPBACKS if _has_address(each)) or LOOPBACKS[:1]


def listen(address: str) -> list[socket.socket]:
    """Return a listening socket for each address that `address` stands for, all with the same port.

    Args:
        address: host:port or [ipv6]:port. Port 0 selects a free port.

    Raises:
        ValueError: The address is not valid.
        PortInUse: Another program listens there.
        OSError: The address cannot be used for another reason.
    """
    host, port = split_address(address)
    hosts = local_hosts(host)
    for _ in range(_ATTEMPTS - 1):
        try:
            return _listen(hosts, port)
        except PortInUse:
            if port:
                raise
    return _listen(hosts, port)


def _listen(hosts: tuple[str, ...], port: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listeners.append(socket.create_server((host, port), family=family, backlog=_BACKLOG))
            port = listeners[0].getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host, port) from None
        raise
    return listeners


def _has_address(host: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError as error:
        return error.errno not in _MISSING
    return True


def port_holder(port: int) -> str:
    """Return the program that listens on a port of this machine, with its process id; empty if it cannot be found.

    Works on Linux only, and for processes of other users only as root.
    """
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if wanted else ():
        try:
            if any(os.readlink(file) in wanted for file in (process / "fd").iterdir()):
                command = _command(process)
                note = ", which wrangler dev runs" if command == _WRANGLER_PROGRAM else ""
                return f"{command} (process {process.name}){note}"
        except OSError:  # it has ended, or belongs to another user
            continue
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for _, local, _, state, *rest in map(str.split, lines):
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                yield rest[5]


def _command(process: Path) -> str:
    """Return the program's name, and for an interpreter also its first two arguments, such as the script's path."""
    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    name = os.path.basename(words[0])
    is_interpreter = name.startswith(("python", "node"))
    return " ".join([name, *words[1:3]]).strip() if is_interpreter else name
