"""Attacks from advisories on other servers, tried on the inference server. SECURITY.md has the list."""

import asyncio
import struct

import grpc
import pytest

from inference_server.grpc_api.server import SERVICE
from tailrace.v1 import inference_pb2 as pb
from tests.support.servers import MODEL, chat, running_server, write_catalog

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4


@pytest.fixture
async def running(tiny_model, tmp_path):
    async with running_server(write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))) as running:
        yield running


async def refusal(running, data: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in running.channel.unary_stream(f"/{SERVICE}/Run")(data):
            pass
    return caught.value.code()


async def assert_next_request_works(running) -> None:
    events = [event async for event in running.stub.Run(chat(max_tokens=2))]
    assert events[-1].HasField("completed")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call(stream: int, message: bytes, **metadata: bytes) -> bytes:
    """Return the frames of a call. Its headers are literals, without a table and without Huffman's code."""
    pseudo = {":method": b"POST", ":scheme": b"http", ":path": f"/{SERVICE}/Run".encode(), ":authority": b"x"}
    headers = {**pseudo, "te": b"trailers", "content-type": b"application/grpc"}
    headers |= {name.replace("_", "-"): value for name, value in metadata.items()}
    block = b"".join(
        b"\x10" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value for name, value in headers.items()
    )
    body = b"\0" + struct.pack(">I", len(message)) + message
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


@pytest.mark.parametrize("value", [b"!!! no base64 !!!", b"AAAA=AAAA", b"=", b"\xff\xfe", b"%00"])
async def test_a_malformed_binary_header_ends_only_its_own_stream(running, value):
    host, _, port = running.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    good = chat(max_tokens=100, temperature=0.0).SerializeToString()
    writer.write(PREFACE + frame(SETTINGS, 0, 0) + call(1, good))
    ended: dict[int, int] = {}  # the kind of frame that ended each stream
    sent_bad = False
    async with asyncio.timeout(20):
        while 1 not in ended:
            head = await reader.readexactly(9)
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
            await reader.readexactly(length)
            assert kind != GOAWAY
            if kind == DATA and not sent_bad:  # the good stream has begun
                writer.write(call(3, good, x_rubbish_bin=value) + call(5, good, grpc_trace_bin=value))
                sent_bad = True
            if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                ended.setdefault(stream, kind)
    writer.close()
    assert sent_bad
    assert ended[1] == HEADERS  # its trailers
    await assert_next_request_works(running)


async def test_huge_metadata_is_refused_and_the_connection_continues(running):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in running.stub.Run(chat(), metadata=[("x-large", "x" * 100_000)]):
            pass
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await assert_next_request_works(running)


@pytest.mark.parametrize("data", [b"\x0b" * 100_000, b"\xa3\x06" * 50_000, b"\x12\xff\xff\xff\xff\x7f", b"\xff" * 1000])
async def test_bytes_with_endless_nesting_or_wrong_lengths_are_refused(running, data):
    assert await refusal(running, data) is grpc.StatusCode.INVALID_ARGUMENT
    await assert_next_request_works(running)


@pytest.mark.parametrize("depth", [100, 5_000, 100_000])
async def test_deeply_nested_schemas_and_arguments_are_refused(running, depth):
    nested = '{"not":' * depth + "{}" + "}" * depth
    schema = pb.RunRequest(model=MODEL, text="hi", response_format=pb.ResponseFormat(json_schema=nested))
    tool = chat()
    tool.chat.tools.add(name="f", parameters=nested)
    tool.chat.tool_choice = pb.TOOL_CHOICE_REQUIRED
    for request in (schema, tool):
        assert await refusal(running, request.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
    await assert_next_request_works(running)
