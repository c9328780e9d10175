"""`tailrace doctor` about the addresses of the services: both loopback addresses, and the program that holds one."""

import os
import socket
import sys

import pytest

from tailrace_cli.doctor.network import addresses


@pytest.fixture
def findings(monkeypatch):
    """Return a function that checks addresses, and returns the findings as text."""

    def find(http, grpc="127.0.0.1:1"):
        monkeypatch.setenv("TAILRACE_HTTP_ADDRESS", http)
        monkeypatch.setenv("TAILRACE_GRPC_ADDRESS", grpc)
        return [finding.text for finding in addresses()]

    return find


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names the program")
@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_localhost_is_in_use_if_one_loopback_address_is(findings, host, family):
    with socket.create_server((host, 0), family=family) as other:
        address = f"localhost:{other.getsockname()[1]}"
        (found, _) = findings(address)
    assert found.startswith(f"{address} is in use by python") and f"(process {os.getpid()})" in found


def test_a_free_address_is_free(findings):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"
    assert findings(address) == [f"{address} is free", "127.0.0.1:1 is free"]


def test_a_program_of_this_machine_does_not_hold_the_port_of_another(findings, monkeypatch):
    monkeypatch.setattr("tailrace_cli.doctor.network._is_in_use", lambda host, port: True)
    assert findings("localhost:1", "gpu-1:50051")[1] == "gpu-1:50051 is in use"
