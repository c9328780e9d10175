"""TLS of the gRPC server: accepted clients, and replacing certificates while it runs. No model is loaded."""

import asyncio
import logging
import ssl

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference_server.grpc_api.server import Server
from inference_server.grpc_api.tls import server_credentials
from inference_server.settings.server import Settings
from tailrace.v1.inference_pb2 import ListModelsRequest
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub
from tailrace_shared.config_errors import ConfigurationError
from tests.support.certificates import Authority
from tests.support.processes import free_address
from tests.support.servers import running_server

STATUS = health_pb2.HealthCheckResponse


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def serving(files, tmp_path, **settings):
    """Run the server with a certificate and without a model."""
    catalog = tmp_path / "not-read.toml"
    return running_server(catalog, load=False, grpc_tls_cert=files.cert, grpc_tls_key=files.key, **settings)


def calling(address, authority, files=None):
    """Return a channel that trusts the authority, with a client certificate from `files`."""
    pair = (files.key.read_bytes(), files.cert.read_bytes()) if files else (None, None)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority.path.read_bytes(), *pair))


async def health(channel):
    """Return the health status, or the code of the refusal."""
    try:
        return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)).status
    except grpc.aio.AioRpcError as error:
        return error.code()


async def shown_certificate(address):
    host, _, port = address.rpartition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))


async def test_with_a_certificate_calls_use_tls_and_plaintext_is_refused(authority, tmp_path):
    async with serving(authority.issue("server"), tmp_path) as running:
        async with calling(running.address, authority) as channel:
            assert await health(channel) == STATUS.NOT_SERVING
        assert await health(running.channel) is grpc.StatusCode.UNAVAILABLE


async def test_a_client_without_a_certificate_of_the_client_ca_is_refused(authority, tmp_path):
    clients = Authority(tmp_path, "clients")
    known, stranger = clients.issue("known"), authority.issue("stranger")
    seen = []
    async with serving(authority.issue("server"), tmp_path, grpc_tls_client_ca=clients.path) as running:
        for files in (known, stranger, None):
            async with calling(running.address, authority, files) as channel:
                seen.append(await health(channel))
    assert seen == [STATUS.NOT_SERVING, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]


async def test_the_plaintext_health_address_serves_only_health(authority, tmp_path):
    address = free_address()
    async with serving(authority.issue("server"), tmp_path, grpc_health_address=address):
        async with grpc.aio.insecure_channel(address) as channel:
            assert await health(channel) == STATUS.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await InferenceServiceStub(channel).ListModels(ListModelsRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_new_connections_get_a_new_certificate(authority, tmp_path):
    files = authority.issue("server")
    async with serving(files, tmp_path) as running, calling(running.address, authority) as channel:
        stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert (await stream.read()).status == STATUS.NOT_SERVING
        authority.issue("renewed", files=files)
        assert await shown_certificate(running.address) == files.cert.read_text()
        await running.server._set_health(STATUS.SERVING)
        assert (await stream.read()).status == STATUS.SERVING


async def test_new_connections_are_checked_by_a_new_client_ca(authority, tmp_path):
    clients, others = Authority(tmp_path, "clients"), Authority(tmp_path, "others")
    seen = []
    async with serving(authority.issue("server"), tmp_path, grpc_tls_client_ca=clients.path) as running:
        clients.path.write_bytes(others.path.read_bytes())
        for files in (clients.issue("one"), others.issue("other")):
            async with calling(running.address, authority, files) as channel:
                seen.append(await health(channel))
    assert seen == [grpc.StatusCode.UNAVAILABLE, STATUS.NOT_SERVING]


@pytest.mark.parametrize("broken", ["", "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n", None])
async def test_an_invalid_certificate_is_logged_once_and_the_old_one_stays(authority, tmp_path, caplog, broken):
    files = authority.issue("server")
    before = files.cert.read_text()
    async with serving(files, tmp_path) as running:
        files.cert.unlink()
        if broken is not None:
            files.cert.write_text(broken)
        with caplog.at_level(logging.WARNING):
            assert [await shown_certificate(running.address) for _ in range(3)] == [before] * 3
        (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert str(files.cert) in record.message and "the last valid version stays active" in record.message
        authority.issue("mended", files=files)
        assert await shown_certificate(running.address) == files.cert.read_text() != before


async def test_a_wrong_key_stops_the_start_in_one_sentence(authority, tmp_path):
    one, other = authority.issue("one"), authority.issue("other")
    with pytest.raises(ConfigurationError, match=r"one\.crt .*other\.key are not a .*\(key values mismatch\)$"):
        server_credentials(Settings(grpc_tls_cert=one.cert, grpc_tls_key=other.key))


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), ("rubbish", "contains no certificates in PEM")]
)
async def test_an_invalid_client_ca_stops_the_start_in_one_sentence(authority, tmp_path, content, reason):
    files, path = authority.issue("server"), tmp_path / "none.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=f"^TAILRACE_GRPC_TLS_CLIENT_CA=.*none.pem:? {reason}"):
        server_credentials(Settings(grpc_tls_cert=files.cert, grpc_tls_key=files.key, grpc_tls_client_ca=path))


@pytest.mark.parametrize(("host", "is_logged"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_a_server_without_access_control_logs_a_warning(caplog, host, is_logged):
    server = Server(Settings(grpc_address=f"{host}:0"))
    with caplog.at_level(logging.WARNING):
        await server.listen()
    await server.stop()
    assert any("set TAILRACE_GRPC_TOKENS_FILE" in record.message for record in caplog.records) == is_logged
