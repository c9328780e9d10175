"""Certificates and token between the bridge and the inference server."""

import asyncio
import logging

import grpc
import pytest

from http_bridge.app import create_app
from http_bridge.settings.bridge import Settings
from tailrace_shared.config_errors import ConfigurationError
from tests.http_bridge.conftest import RUN_URL, Backend
from tests.support.certificates import Authority, Files


@pytest.fixture(autouse=True)
def files_are_looked_at_for_each_call(monkeypatch):
    monkeypatch.setattr("http_bridge.upstream.tls.CHECK_SECONDS", 0.0)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
async def secured(authority):
    """Run a server for the host inference.internal that requires client certificates and records their names."""
    files = authority.issue("server", host="inference.internal")
    pairs = [(files.key.read_bytes(), files.cert.read_bytes())]
    backend = Backend(grpc.ssl_server_credentials(pairs, authority.path.read_bytes(), require_client_auth=True))
    backend.callers = []

    async def name_caller(reply):
        backend.callers += reply.context.auth_context()["x509_common_name"]
        await reply.accept()
        await reply.complete()

    backend.servicer.script = name_caller
    await backend.server.start()
    await backend.set_serving(True)
    yield backend
    await backend.server.stop(None)


@pytest.fixture
def tls(authority, secured):
    """Return the settings of a bridge that may call it."""
    client = authority.issue("bridge")
    return {
        "grpc_address": secured.address,
        "grpc_tls_ca": authority.path,
        "grpc_tls_client_cert": client.cert,
        "grpc_tls_client_key": client.key,
        "grpc_tls_server_name": "inference.internal",
    }


def error_code(response):
    return response.status_code, response.json()["errors"][0]["code"]


async def test_the_bridge_sends_its_certificate(start_bridge, secured, tls):
    bridge = await start_bridge(**tls)
    assert ((await bridge.ask()).status_code, secured.callers) == (200, [b"bridge"])
    assert (await bridge.client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("name", ["another.internal", ""], ids=["another name", "the address"])
async def test_a_server_of_another_name_is_not_called(start_bridge, secured, tls, name):
    bridge = await start_bridge(**{**tls, "grpc_tls_server_name": name})
    assert (error_code(await bridge.ask()), secured.callers) == ((503, 7009), [])
    assert "trust the other's certificate" in (await bridge.client.get("/readyz")).json()["reason"]


async def test_a_server_of_another_authority_is_not_called(start_bridge, secured, tls, tmp_path):
    bridge = await start_bridge(**{**tls, "grpc_tls_ca": Authority(tmp_path, "others").path})
    assert (error_code(await bridge.ask()), secured.callers) == ((503, 7009), [])


async def test_new_calls_send_a_new_certificate(start_bridge, secured, tls, authority):
    go_on = asyncio.Event()

    async def wait_between(reply):
        secured.callers += reply.context.auth_context()["x509_common_name"]
        await reply.accept()
        await reply.say("one")
        await go_on.wait()
        await reply.say("two")
        await reply.complete()

    secured.servicer.scripts = [wait_between]
    bridge = await start_bridge(**tls)
    async with bridge.client.stream("POST", RUN_URL, json={"prompt": "hi", "stream": True}) as response:
        chunks = response.aiter_bytes()
        assert b"one" in await anext(chunks)
        authority.issue("renewed", files=Files(tls["grpc_tls_client_cert"], tls["grpc_tls_client_key"]))
        assert [(await bridge.ask()).status_code for _ in range(2)] == [200, 200]
        go_on.set()
        rest = b"".join([chunk async for chunk in chunks])
    assert b"two" in rest and rest.endswith(b"data: [DONE]\n\n")
    assert secured.callers == [b"bridge", b"renewed", b"renewed"]


async def test_invalid_files_are_logged_once_and_the_old_ones_stay(start_bridge, secured, tls, caplog):
    bridge = await start_bridge(**tls)
    tls["grpc_tls_client_key"].write_text("rubbish")
    with caplog.at_level(logging.WARNING):
        assert [(await bridge.ask()).status_code for _ in range(3)] == [200] * 3
    (record,) = caplog.records
    assert "bridge.key are not a certificate and its unencrypted key" in record.message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("grpc_tls_ca", None, r"TAILRACE_GRPC_TLS_CA=\S+: No such file or directory\.$"),
        ("grpc_tls_ca", "rubbish", r"TAILRACE_GRPC_TLS_CA=\S+ contains no certificates in PEM \(.+\)\.$"),
        ("grpc_tls_client_key", None, r"TAILRACE_GRPC_TLS_CLIENT_KEY=\S+: No such file or directory\.$"),
        ("grpc_tls_client_cert", "rubbish", r"TAILRACE_GRPC_TLS_CLIENT_CERT=\S+ and \S+ are not a certificate and its"),
    ],
)
async def test_an_invalid_file_stops_the_start_in_one_sentence(tls, tmp_path, name, content, reason):
    path = tmp_path / "other.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=f"^{reason}"):
        create_app(Settings(**{**tls, name: path}))


async def test_the_token_is_sent_with_each_run(start_bridge, servicer):
    seen = []

    async def look(reply):
        seen.append(dict(reply.context.invocation_metadata()).get("authorization"))
        await reply.accept()
        await reply.complete()

    servicer.script = look
    for settings in ({"grpc_token": "secret"}, {}):
        await (await start_bridge(**settings)).ask()
    assert seen == ["Bearer secret", None]


async def test_a_refused_token_is_logged_and_hidden_from_the_client(start_bridge, servicer, caplog):
    servicer.script = lambda reply: reply.refuse(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    bridge = await start_bridge(grpc_token="hush")
    with caplog.at_level(logging.WARNING):
        response = await bridge.ask()
    assert error_code(response) == (503, 7009) and "token" not in response.text
    assert "set TAILRACE_GRPC_TOKEN to a token whose digest is in" in caplog.text and "hush" not in caplog.text


async def test_a_bridge_with_a_refused_token_is_not_ready(start_bridge, backend, servicer):
    servicer.token = "right"
    await backend.set_serving(True)
    right, wrong = [await start_bridge(grpc_token=token) for token in ("right", "wrong")]
    assert (await right.client.get("/readyz")).status_code == 200
    response = await wrong.client.get("/readyz")
    assert (response.status_code, response.json()["reason"]) == (
        503,
        "The inference server refuses the bridge's token.",
    )


async def test_models_cannot_be_listed_with_a_token_that_is_refused(start_bridge, servicer, caplog):
    servicer.token = "right"
    right, wrong = [await start_bridge(grpc_token=token) for token in ("right", "wrong")]
    assert (await right.client.get("/v1/models")).status_code == 200
    assert error_code(await wrong.client.get("/client/v4/accounts/acc/ai/models/search")) == (503, 7009)
    assert "the inference server refuses this bridge" in caplog.text
