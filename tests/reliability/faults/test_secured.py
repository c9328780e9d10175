"""Server, bridge and command with certificates of both sides and tokens, which are replaced while a stream runs."""

import asyncio
import hashlib
import ssl

import pytest

from tailrace_cli.errors import Failure, Refusal
from tailrace_cli.rpc import GrpcClient
from tests.http_bridge.conftest import running_bridge
from tests.support.certificates import Authority
from tests.support.servers import MODEL, running_server, write_catalog

pytestmark = pytest.mark.reliability

RUN_URL = f"/client/v4/accounts/acc/ai/run/{MODEL}"
# The tiny model's greedy replies end only at max_tokens.
ASK = {"prompt": "hi", "stream": True, "temperature": 0, "max_tokens": 1800}


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
async def secured(tiny_model, tmp_path, monkeypatch):
    """Yield the running server, its tokens file, its certificate, and the settings of its clients."""
    for module in ("inference_server.grpc_api.auth", "http_bridge.upstream.tls"):
        monkeypatch.setattr(f"{module}.CHECK_SECONDS", 0.0)
    authority = Authority(tmp_path)
    files, client = authority.issue("server"), authority.issue("client")
    tokens_file = tmp_path / "tokens"
    tokens_file.write_text(digest("first"))
    clients = {"ca": authority.path, "client_cert": client.cert, "client_key": client.key}
    settings = {"grpc_tls_cert": files.cert, "grpc_tls_key": files.key, "grpc_tls_client_ca": authority.path}
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    async with running_server(catalog, grpc_tokens_file=tokens_file, **settings) as running:
        for name, path in clients.items():
            monkeypatch.setenv(f"TAILRACE_GRPC_TLS_{name.upper()}", str(path))
        monkeypatch.setenv("TAILRACE_GRPC_TOKEN", "first")
        yield running, tokens_file, files, authority


async def models(running):
    """Return the model names of `tailrace models --grpc` with the token of the environment."""
    return [model.name for model in await asyncio.to_thread(GrpcClient(running.address).models)]


async def test_certificate_and_tokens_are_replaced_while_a_stream_runs(secured, monkeypatch):
    running, tokens_file, files, authority = secured
    host, _, port = running.address.rpartition(":")
    # The bridge reads the same variables as the command.
    async with running_bridge(running.address) as bridge:
        async with bridge.client.stream("POST", RUN_URL, json=ASK) as response:
            chunks = response.aiter_bytes()
            await anext(chunks)
            authority.issue("renewed", files=files)
            tokens_file.write_text(digest("second"))
            shown = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
            with pytest.raises(Refusal, match="requires a valid token: set TAILRACE_GRPC_TOKEN"):
                await models(running)
            monkeypatch.setenv("TAILRACE_GRPC_TOKEN", "second")
            assert await models(running) == [MODEL]
            assert running.engine.num_in_flight == 1
            rest = b"".join([chunk async for chunk in chunks])
        assert (await bridge.client.post(RUN_URL, json=ASK)).status_code == 503
    assert shown == files.cert.read_text()
    assert rest.endswith(b"data: [DONE]\n\n") and b'"completion_tokens":1800' in rest


async def test_the_command_explains_missing_parts_of_its_tls(secured, monkeypatch, tmp_path):
    running, *_ = secured
    monkeypatch.delenv("TAILRACE_GRPC_TLS_CLIENT_KEY")
    with pytest.raises(Failure, match="TAILRACE_GRPC_TLS_CLIENT_CERT and TAILRACE_GRPC_TLS_CLIENT_KEY must be set"):
        await models(running)
    monkeypatch.delenv("TAILRACE_GRPC_TLS_CLIENT_CERT")
    with pytest.raises(Failure, match="does not trust the certificate of the other"):
        await models(running)
    monkeypatch.setenv("TAILRACE_GRPC_TLS_CA", str(tmp_path / "none.pem"))
    with pytest.raises(Failure, match="TAILRACE_GRPC_TLS_CA=.*none.pem: No such file or directory."):
        await models(running)
