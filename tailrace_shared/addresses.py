"""Network addresses in settings: parsing and checks, without name resolution."""

import ipaddress

_MAX_PORT = 65535


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[ipv6]:port` into the host without brackets and the port, 0 to 65535.

    Raises:
        ValueError: The address is not valid; the message is a clause such as "its port is not a number".
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or host.startswith("[") != host.endswith("]"):
        raise ValueError("it is not host:port, for example 127.0.0.1:8787 or [::1]:8787")
    if ":" in host and not host.startswith("["):
        raise ValueError("an IPv6 address needs brackets, for example [::1]:8787")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _MAX_PORT):
        raise ValueError("its port is not a number from 0 to 65535")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach `host`, an IP address with or without brackets or a name.

    The only name that counts as loopback is localhost.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
