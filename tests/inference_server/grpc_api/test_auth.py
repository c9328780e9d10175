"""Tokens of gRPC calls: which calls need one, and replacing the file while the server runs. No model is loaded."""

import hashlib
import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inference_server.grpc_api.auth import read_digests
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.config_errors import ConfigurationError
from tests.support.servers import chat, details, running_server

# The answer to accepted calls, because the server has no model.
LET_IN = (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def tokens_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# callers\n{digest('bridge')}  # the bridge\n\n{digest('cron').upper()}  -\n")
    return path


@pytest.fixture
async def running(tokens_file, tmp_path, monkeypatch):
    monkeypatch.setattr("inference_server.grpc_api.auth.CHECK_SECONDS", 0.0)
    async with running_server(tmp_path / "not-read.toml", load=False, grpc_tokens_file=tokens_file) as running:
        yield running


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


async def answer(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read() if hasattr(call, "read") else await call
    info = details(caught.value)["ErrorInfo"]
    assert info.domain == "tailrace"
    return caught.value.code(), info.reason


async def models(running, metadata=()):
    return await answer(running.stub.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=5))


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer("wrong"),
        bearer(""),
        bearer(digest("bridge")),
        bearer("bridge") + bearer("bridge"),
        (("authorization", "Basic bridge"),),
        (("authorization", "bridge"),),
        (("token", "bridge"),),
    ],
)
async def test_a_call_without_a_known_token_is_refused(running, metadata):
    assert await models(running, metadata) == REFUSED


@pytest.mark.parametrize("metadata", [bearer("bridge"), bearer("cron"), (("authorization", "bearer  bridge "),)])
async def test_a_call_with_a_known_token_is_accepted(running, metadata):
    assert await models(running, metadata) == LET_IN


async def test_every_method_requires_the_token(running):
    count = running.stub.CountTokens(pb.CountTokensRequest(model="m", text="x"), timeout=5)
    assert [await answer(running.stub.Run(chat(), timeout=5)), await answer(count)] == [REFUSED, REFUSED]


async def test_an_unknown_method_requires_the_token(running):
    assert await answer(running.channel.unary_unary("/tailrace.v2.No/Such")(b"", timeout=5)) == REFUSED


async def test_reflection_requires_the_token_before_it_reads_anything(running):
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    assert await answer(stub.ServerReflectionInfo(timeout=5)) == REFUSED
    call = stub.ServerReflectionInfo(metadata=bearer("bridge"), timeout=5)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    assert (await call.read()).list_services_response.service


async def test_health_requires_no_token(running):
    reply = await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_tokens_are_replaced_without_a_restart(running, tokens_file):
    assert await models(running, bearer("bridge")) == LET_IN
    tokens_file.write_text(digest("next"))
    assert [await models(running, bearer(token)) for token in ("next", "bridge")] == [LET_IN, REFUSED]
    tokens_file.write_text("# nobody\n")
    assert await models(running, bearer("next")) == REFUSED


@pytest.mark.parametrize("content", [None, b"bridge\n", b"\xff\xfe"])
async def test_an_invalid_file_is_logged_once_and_the_old_tokens_stay(running, tokens_file, caplog, content):
    tokens_file.unlink()
    if content is not None:
        tokens_file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [await models(running, bearer(token)) for token in ("bridge", "wrong", "cron")] == [
            LET_IN,
            REFUSED,
            LET_IN,
        ]
    (record,) = caplog.records
    assert record.message.startswith(f"TAILRACE_GRPC_TOKENS_FILE={tokens_file}: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("# one\nhush\n", "line 2 is not a SHA-256 digest of 64 hexadecimal digits"),
        (f"{digest('a')} {digest('b')}", "line 1 is not a SHA-256 digest"),
    ],
)
def test_an_invalid_file_is_reported_without_its_content(tmp_path, content, reason):
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=f"^TAILRACE_GRPC_TOKENS_FILE={path}: {reason}") as caught:
        read_digests(path)
    assert "hush" not in str(caught.value)
