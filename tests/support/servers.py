"""Runs the real gRPC server on a free port, in this process or in its own, with a catalog of tiny models."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from inference_server.grpc_api.server import Server
from inference_server.settings.server import Settings
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc

MODEL = "@cf/test/tiny"


def write_catalog(
    path: Path, folder: Path, *, precision: str = "float32", context: int = 2048, sequence: int = 1800
) -> Path:
    path.write_text(
        f"""[[models]]
name = "{MODEL}"
description = "for tests"
source = {{ path = {json.dumps(str(folder))} }}
precision = "{precision}"
context_length = {context}
sequence_length = {sequence}
"""
    )
    return path


@dataclass
class Running:
    server: Server
    address: str
    channel: grpc.aio.Channel
    stub: "inference_pb2_grpc.InferenceServiceAsyncStub"

    @property
    def engine(self):
        return next(iter(self.server.servicer.models.values())).engine


@asynccontextmanager
async def running_server(catalog: Path, *, load: bool = True, **settings: object) -> AsyncIterator[Running]:
    server = Server(Settings(grpc_address="127.0.0.1:0", catalog=catalog, device="cpu", **settings))
    address = f"127.0.0.1:{await server.listen()}"
    try:
        if load:
            await server.load()
        async with grpc.aio.insecure_channel(address) as channel:
            yield Running(server, address, channel, inference_pb2_grpc.InferenceServiceStub(channel))
    finally:
        await server.stop()


def chat(text: str = "where is new york", **sampling: object) -> pb.RunRequest:
    return pb.RunRequest(
        model=MODEL,
        chat=pb.Chat(turns=[pb.ChatTurn(role="user", content=text)]),
        sampling=pb.Sampling(**sampling),
    )


def details(error: grpc.aio.AioRpcError) -> dict[str, object]:
    """Return the google.rpc details of a status, by message name."""
    status = rpc_status.from_call(error)
    found: dict[str, object] = {}
    for packed in status.details if status else ():
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = message = kind()
                packed.Unpack(message)
    return found
