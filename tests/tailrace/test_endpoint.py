"""Addresses and credentials of the clients."""

import subprocess
import sys

import pytest

from tailrace import AsyncClient, AuthenticationError, Client, ForbiddenError
from tailrace.endpoint import endpoint
from tailrace.options import RunOptions, Sampling
from tailrace_shared.request_fields import SAMPLING_FIELDS
from tests.tailrace.conftest import MODEL

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def found(url=None, token=None, account=None):
    return endpoint(url, token, account, None, None)


def test_arguments_have_priority_over_the_environment(monkeypatch):
    monkeypatch.setenv("TAILRACE_URL", "http://[::1]:99/base/")
    monkeypatch.setenv("TAILRACE_TOKEN", "secret")
    monkeypatch.setenv("TAILRACE_ACCOUNT", "acme")
    given = found()
    assert (given.url, given.target, given.is_local) == ("http://[::1]:99/base", "[::1]:99", True)
    assert (given.token, given.account, "secret" in repr(given)) == ("secret", "acme", False)
    other = found("grpcs://example.com:443", "", "")
    assert (other.target, other.has_tls, other.is_local, other.token, other.account) == (
        "example.com:443",
        True,
        False,
        "",
        "",
    )


def test_an_inference_server_has_a_token_of_its_own(monkeypatch):
    monkeypatch.setenv("TAILRACE_TOKEN", "bridge")
    assert found("grpc://127.0.0.1:1").token == "bridge"
    monkeypatch.setenv("TAILRACE_GRPC_TOKEN", "server")
    assert (found("grpc://127.0.0.1:1").token, found("http://127.0.0.1").token) == ("server", "bridge")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8787", "ftp://a", "http://", "grpc://host", "http://a:x", "http://a:99999", "http://a?b=c"]
)
def test_what_is_no_address_is_refused_with_an_example(url):
    with pytest.raises(ValueError, match="is not an address"):
        Client(url)


@pytest.mark.parametrize("account", ["a/b", "..", "a?b", "a\nb", "x" * 129])
def test_an_account_cannot_change_the_path(account):
    with pytest.raises(ValueError, match="is not the name of an account"):
        Client("http://127.0.0.1:1", account=account)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="user name or a password") as raised:
        Client("http://user:secret@127.0.0.1:1")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "limit", [{"timeout": 0}, {"timeout": float("inf")}, {"total_timeout": -1}, {"retries": -1}, {"token": "a b"}]
)
def test_wrong_limits_and_tokens_are_refused(limit):
    with pytest.raises(ValueError, match=r"must be|may contain"):
        AsyncClient(**limit)


def test_a_missing_certificate_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        Client("grpcs://a:1", ca_file=tmp_path / "ca.pem")


@pytest.mark.parametrize("files", [{"ca_file": "x"}, {"client_cert": ("x", "x")}])
def test_a_file_without_a_certificate_is_named(tmp_path, monkeypatch, files):
    (tmp_path / "x").write_text("no certificate")
    monkeypatch.chdir(tmp_path)
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="x cannot be used for TLS"):
            kind("https://a", **files)


async def test_token_and_account_reach_the_bridge(start_bridge, servicer, in_thread):
    bridge = await start_bridge(api_tokens="secret")
    url = f"http://127.0.0.1:{bridge.port}"
    with Client(url, token="secret", account="acme", model=MODEL) as client:
        assert (await in_thread(client.run, "hi")).text
    assert servicer.requests[0].account == "acme"
    with Client(url, token="wrong", model=MODEL) as client, pytest.raises(AuthenticationError):
        await in_thread(client.run, "hi")


async def test_a_token_of_another_account_is_another_error(start_bridge, tmp_path, in_thread):
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    (tmp_path / "tokens").write_text(f"acme {digest}\n")
    bridge = await start_bridge(api_tokens_file=tmp_path / "tokens")
    url = f"http://127.0.0.1:{bridge.port}"
    with Client(url, token="secret", account="other", model=MODEL) as client, pytest.raises(ForbiddenError):
        await in_thread(client.run, "hi")
    with Client(url, token="secret", model=MODEL) as client:
        assert (await in_thread(client.models))[0].name == MODEL


async def test_the_environments_trace_continues_in_the_server(client, servicer, monkeypatch, in_thread):
    seen = []

    async def look(reply):
        seen.append(dict(reply.context.invocation_metadata()).get("traceparent"))
        await reply.accept()
        await reply.start()
        await reply.complete()

    servicer.script = look
    monkeypatch.setenv("TRACEPARENT", PARENT)
    await in_thread(client.run, "hi")
    monkeypatch.setenv("TRACEPARENT", "nonsense\n")
    await in_thread(client.run, "hi")
    assert seen == [PARENT, None]


def test_the_typed_sampling_options_are_those_of_the_table():
    kinds = {"number": float, "integer": int}
    assert Sampling.__annotations__ == {field.name: kinds[field.kind] for field in SAMPLING_FIELDS}
    assert Sampling.__annotations__.keys() < RunOptions.__annotations__.keys()


def test_importing_the_package_and_the_plugin_loads_nothing_large():
    heavy = "torch transformers grpc httpx2 google.protobuf pydantic".split()
    code = f"import sys, tailrace, tailrace.pytest_plugin; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    code = "import tailrace\nfor name in dir(tailrace): getattr(tailrace, name)\ntailrace.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "module 'tailrace' has no attribute 'nothing'" in done.stderr
