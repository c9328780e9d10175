"""Parsing of network addresses in settings."""

import pytest

from tailrace_shared.addresses import is_loopback, split_address


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:8787", ("127.0.0.1", 8787)),
        ("server:0", ("server", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:50051", ("::1", 50051)),
    ],
)
def test_address_is_split_into_host_and_port(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("", "it is not host:port"),
        ("foo", "it is not host:port"),
        (":8787", "it is not host:port"),
        ("[::1:8787", "it is not host:port"),
        ("::1]:8787", "it is not host:port"),
        ("::1:8787", "an IPv6 address needs brackets"),
        ("host:", "its port is not a number from 0 to 65535"),
        ("host:http", "its port is not a number from 0 to 65535"),
        ("host:-1", "its port is not a number from 0 to 65535"),
        ("host:65536", "its port is not a number from 0 to 65535"),
        ("host:000080", "its port is not a number from 0 to 65535"),
        ("host:٨٧", "its port is not a number from 0 to 65535"),
    ],
)
def test_malformed_address_is_explained(address, problem):
    with pytest.raises(ValueError, match=problem):
        split_address(address)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(host, is_local):
    assert is_loopback(host) == is_local
