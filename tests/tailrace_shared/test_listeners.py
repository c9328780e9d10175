"""The sockets of a service: both loopback addresses for localhost, and the sentence about a port that is in use."""

import errno
import socket
import subprocess
import sys

import pytest

from tailrace_shared import listeners
from tailrace_shared.listeners import PortInUse, listen


def closing(sockets):
    """Return the addresses of the sockets, and close them."""
    found = [each.getsockname()[:2] for each in sockets]
    for each in sockets:
        each.close()
    return found


def without_ipv6(monkeypatch, number):
    """Let this process see a machine without IPv6: no sockets of that family, or no address ::1."""
    create = socket.socket

    class Socket(create):
        def __init__(self, family=-1, *arguments, **options):
            if family == socket.AF_INET6 and number == errno.EAFNOSUPPORT:
                raise OSError(number, "Address family not supported by protocol")
            super().__init__(family, *arguments, **options)

        def bind(self, address):
            if self.family == socket.AF_INET6:
                raise OSError(number, "Cannot assign requested address")
            super().bind(address)

    monkeypatch.setattr(listeners.socket, "socket", Socket)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_localhost_is_both_loopback_addresses_with_one_port():
    (first, port), (second, other) = closing(listen("localhost:0"))
    assert (first, second) == ("127.0.0.1", "::1") and port == other > 0


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_localhost_is_one_address_on_a_machine_without_ipv6(monkeypatch, number):
    without_ipv6(monkeypatch, number)
    assert [host for host, _ in closing(listen("localhost:0"))] == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_another_host_is_itself_alone(host):
    assert [found for found, _ in closing(listen(f"{host}:0"))] == [host]


@pytest.mark.parametrize("taken", [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_localhost_is_in_use_if_one_of_its_addresses_is(taken):
    host, family = taken
    with socket.create_server((host, 0), family=family) as other, pytest.raises(PortInUse) as caught:
        listen(f"localhost:{other.getsockname()[1]}")
    assert caught.value.host == host


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names the program")
def test_the_sentence_names_the_program_that_holds_the_port_and_what_to_set(tmp_path):
    (tmp_path / "workerd").symlink_to(sys.executable)
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [tmp_path / "workerd", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        port = int(other.stdout.readline())
        with pytest.raises(PortInUse) as caught:
            listen(f"127.0.0.1:{port}")
        sentence = caught.value.explain("HTTP_ADDRESS", f"127.0.0.1:{port}")
        other.communicate("\n")
    assert sentence.startswith(
        f"Port {port} (TAILRACE_HTTP_ADDRESS=127.0.0.1:{port}) is in use already, by workerd (process {other.pid}), which "
        "wrangler dev runs. Set TAILRACE_HTTP_ADDRESS to another address, for example 127.0.0.1:"
    )


def test_an_unknown_program_at_the_default_port_may_be_wrangler(monkeypatch):
    monkeypatch.setattr(listeners, "port_holder", lambda port: "")
    assert PortInUse("127.0.0.1", 8787).explain("HTTP_ADDRESS", "localhost:8787") == (
        "Port 8787 (TAILRACE_HTTP_ADDRESS=localhost:8787) is in use already; it is also the default port of wrangler dev. Set "
        "TAILRACE_HTTP_ADDRESS to another address, for example localhost:8790"
    )
