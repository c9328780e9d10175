"""Settings: values from the environment, and the messages for wrong ones."""

import pytest

from http_bridge.settings.bridge import Settings
from tailrace_shared.config_errors import ConfigurationError


def sentence(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"TAILRACE_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment()
    return str(caught.value)


def test_defaults_listen_on_loopback(monkeypatch):
    settings = Settings.from_environment()
    assert (settings.http_address, settings.grpc_address) == ("localhost:8787", "127.0.0.1:50051")
    assert settings.api_tokens == settings.cors_origins == ()


def test_lists_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("TAILRACE_API_TOKENS", "one, two,,three ")
    monkeypatch.setenv("TAILRACE_CORS_ORIGINS", "*")
    settings = Settings.from_environment()
    assert settings.api_tokens == ("one", "two", "three")
    assert settings.cors_origins == ("*",)


def test_the_bindings_port_is_its_own(monkeypatch):
    addresses = {"HTTP_ADDRESS": "10.0.0.5:8789", "BINDING_ADDRESS": "127.0.0.1:8789", "API_TOKENS": "secret"}
    assert "have the port 8789" in sentence(monkeypatch, **addresses)
    monkeypatch.setenv("TAILRACE_HTTP_ADDRESS", "10.0.0.5:8787")
    assert Settings.from_environment().binding_address == "127.0.0.1:8789"


def test_empty_variables_are_unset(monkeypatch):
    monkeypatch.setenv("TAILRACE_HTTP_ADDRESS", "")
    monkeypatch.setenv("TAILRACE_MAX_BODY_BYTES", "")
    assert Settings.from_environment() == Settings()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("HTTP_ADDRESS", "8787", "it is not host:port"),
        ("BINDING_ADDRESS", "0.0.0.0:8789", "it needs no token, so it must be a loopback address"),
        ("PROFILE", "2024", "Input should be 'default', '2023-11', '2026' or '2026-strict'"),
        ("HTTP_ADDRESS", ":8787", "it is not host:port"),
        ("HTTP_ADDRESS", "localhost:http", "its port is not a number from 0 to 65535"),
        ("HTTP_ADDRESS", "localhost:65536", "its port is not a number from 0 to 65535"),
        ("HTTP_ADDRESS", "localhost:-1", "its port is not a number from 0 to 65535"),
        ("HTTP_ADDRESS", "::1:8787", "an IPv6 address needs brackets"),
        ("GRPC_ADDRESS", "server", "it is not host:port"),
        ("GRPC_ADDRESS", "server:0", "port 0 cannot be called"),
        ("GRPC_ADDRESS", "one:50051,two", "it is not host:port"),
        ("GRPC_ADDRESS", "one:50051,unix:two", "unix:two is in gRPC's notation, which must be the only target"),
        ("GRPC_ADDRESS", ",", "it contains no address"),
        ("REQUEST_TIMEOUT_SECONDS", "0", "Input should be greater than 0"),
        ("REQUEST_TIMEOUT_SECONDS", "nan", "Input should be a finite number"),
        ("MAX_BODY_BYTES", "1e9", "Input should be a valid integer"),
        ("MAX_BODY_BYTES", "4000001", "Input should be less than or equal to 4000000"),
        ("MAX_MESSAGES", "0", "Input should be greater than or equal to 1"),
        ("MAX_SCHEMA_DEPTH", "101", "Input should be less than or equal to 100"),
        ("WRITE_TIMEOUT_SECONDS", "0", "Input should be greater than 0"),
        ("IDLE_TIMEOUT_SECONDS", "inf", "Input should be"),
        ("STREAM_PADDING", "maybe", "Input should be a valid boolean"),
        ("LOG_LEVEL", "loud", "Input should be 'debug', 'info', 'warning' or 'error'"),
        ("CORS_ORIGINS", "example.com", "'example.com' is not an origin"),
        ("ALLOWED_HOSTS", "http://tailrace.example", "'http://tailrace.example' is not a host name"),
        ("ALLOWED_HOSTS", "tailrace.example:80", "'tailrace.example:80' is not a host name"),
        ("HTTP_SHUTDOWN_GRACE_SECONDS", "-1", "Input should be greater than or equal to 0"),
    ],
)
def test_wrong_value_is_one_sentence_that_names_the_variable(monkeypatch, name, value, reason):
    text = sentence(monkeypatch, **{name: value})
    assert text.lower().startswith(f"tailrace_{name}={value}: {reason}".lower())
    assert "\n" not in text


def test_wrong_token_is_not_repeated(monkeypatch):
    text = sentence(monkeypatch, API_TOKENS="sécret")
    assert text.startswith("TAILRACE_API_TOKENS: a token may contain printable ASCII characters only")
    assert "cret" not in text


def test_grpc_token_is_not_repeated(monkeypatch):
    text = sentence(monkeypatch, GRPC_TOKEN="hush hush")
    assert text == "TAILRACE_GRPC_TOKEN: a token may contain printable ASCII characters only, and no space"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"GRPC_TLS_CLIENT_CERT": "/a"}, "CERT and TAILRACE_GRPC_TLS_CLIENT_KEY need each other: set both or neither"),
        ({"GRPC_TLS_CLIENT_CERT": "/a", "GRPC_TLS_CLIENT_KEY": "/b"}, "need TAILRACE_GRPC_TLS_CA"),
        ({"GRPC_TLS_SERVER_NAME": "server"}, "need TAILRACE_GRPC_TLS_CA"),
    ],
)
def test_incomplete_tls_settings_are_reported(monkeypatch, variables, reason):
    text = sentence(monkeypatch, **variables)
    assert text.startswith("TAILRACE_GRPC_TLS_CLIENT_CERT") and text.endswith(reason)


@pytest.mark.parametrize("address", ["0.0.0.0:8787", "[::]:8787", "192.168.1.2:8787", "example.com:80"])
def test_open_address_without_tokens_is_refused(monkeypatch, address):
    text = sentence(monkeypatch, HTTP_ADDRESS=address)
    assert text.startswith(
        f"TAILRACE_HTTP_ADDRESS={address} is open to other machines and TAILRACE_API_TOKENS is empty"
    )


@pytest.mark.parametrize("address", ["0.0.0.0:8787", "[::]:8787"])
def test_open_address_with_tokens_is_accepted(monkeypatch, address):
    monkeypatch.setenv("TAILRACE_API_TOKENS", "secret")
    monkeypatch.setenv("TAILRACE_HTTP_ADDRESS", address)
    assert Settings.from_environment().http_address == address


def test_open_address_with_a_token_file_is_accepted(monkeypatch):
    monkeypatch.setenv("TAILRACE_API_TOKENS_FILE", "/run/secrets/tokens")
    monkeypatch.setenv("TAILRACE_HTTP_ADDRESS", "0.0.0.0:8787")
    assert str(Settings.from_environment().api_tokens_file) == "/run/secrets/tokens"


def test_tokens_are_not_in_the_representation():
    assert "hush" not in repr(Settings(api_tokens=("hush",), grpc_token="hush"))


@pytest.mark.parametrize("address", ["dns:///server:50051", "unix:/run/tailrace.sock", "[::1]:50051", "server:50051"])
def test_grpc_targets_are_accepted(address):
    assert Settings(grpc_address=address).grpc_address == address


def test_hosts_are_names_addresses_and_suffixes():
    text = "tailrace.example, .lan,10.0.0.5,[fe80::1],*"
    assert Settings(allowed_hosts=text).allowed_hosts == ("tailrace.example", ".lan", "10.0.0.5", "[fe80::1]", "*")
