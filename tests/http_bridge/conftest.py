"""Runs a real bridge under uvicorn before a real gRPC server with replies that a test scripts."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import httpx
import pytest
import uvicorn
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from http_bridge.__main__ import uvicorn_config
from http_bridge.app import create_app
from http_bridge.observability.metrics import Metrics
from http_bridge.protocol.bodies.reader import BodyReader
from http_bridge.protocol.schemas import Inputs
from http_bridge.settings.bridge import Settings
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc

MODEL = "@cf/meta/llama-2-7b-chat-int8"
RUN_URL = f"/client/v4/accounts/acc/ai/run/{MODEL}"
BODIES = BodyReader(Inputs(max_messages=1024, max_schema_depth=32))
Script = Callable[["Reply"], Awaitable[None]]


class Reply:
    """A call in a script: its request, and methods to answer it."""

    def __init__(self, request: pb.RunRequest, context: grpc.aio.ServicerContext) -> None:
        self.request = request
        self.context = context
        self.request_id = dict(context.invocation_metadata())["x-request-id"]

    async def accept(self) -> None:
        await self.context.send_initial_metadata((("x-request-id", self.request_id),))

    async def start(self) -> None:
        started = pb.Started(request_id=self.request_id, model=self.request.model, prompt_tokens=5, seed=1)
        await self.context.write(pb.RunResponse(started=started))

    async def say(self, text: str) -> None:
        await self.context.write(pb.RunResponse(delta=pb.Delta(text=text, tokens=1)))

    async def complete(self) -> None:
        usage = pb.Usage(prompt_tokens=5, completion_tokens=7)
        completed = pb.Completed(finish_reason=pb.FINISH_REASON_STOP, usage=usage)
        await self.context.write(pb.RunResponse(completed=completed))

    async def refuse(self, code: grpc.StatusCode, reason: str = "", *details, **metadata: str) -> None:
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain="tailrace", metadata=metadata)
            details = (info, *details)
        packed = [any_pb2.Any() for _ in details]
        for box, detail in zip(packed, details, strict=True):
            box.Pack(detail)
        status = status_pb2.Status(code=code.value[0], message="not for the client", details=packed)
        await self.context.abort_with_status(rpc_status.to_status(status))

    async def forever(self) -> None:
        await asyncio.Event().wait()


async def new_york(reply: Reply) -> None:
    await reply.accept()
    await reply.start()
    for text in ("New", " York", "", "\n“é”"):
        await reply.say(text)
    await reply.complete()


async def length_of_text(reply: Reply) -> pb.EmbedResponse:
    """Return one vector for each text: its length in characters, and 0.1."""
    embeddings = [pb.Embedding(values=[len(text), 0.1]) for text in reply.request.texts]
    return pb.EmbedResponse(embeddings=embeddings, prompt_tokens=3 * len(embeddings))


class FakeServicer(inference_pb2_grpc.InferenceServiceServicer):
    """A servicer that answers each Run by `script`, or by the next of `scripts` if there are any."""

    def __init__(self) -> None:
        self.script: Script = new_york
        self.scripts: list[Script] = []
        self.embed: Callable[[Reply], Awaitable[pb.EmbedResponse]] = length_of_text
        self.embed_requests: list[pb.EmbedRequest] = []
        self.num_lists = 0  # calls of ListModels
        self.token = ""  # the models of ListModels
        self.models: list[pb.Model] = [
            pb.Model(name=MODEL, description="First", context_length=20, sequence_length=10, window=30, stands_in=True),
            pb.Model(name="@hf/other/second", description="Second", window=40),
        ]
        self.requests: list[pb.RunRequest] = []
        self.request_ids: list[str] = []
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def ListModels(self, request, context):
        if self.token and ("authorization", f"Bearer {self.token}") not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not for the client")
        self.num_lists += 1
        return pb.ListModelsResponse(models=self.models)

    async def Run(self, request, context):
        reply = Reply(request, context)
        self.requests.append(request)
        self.request_ids.append(reply.request_id)
        self.entered.set()
        try:
            await (self.scripts.pop(0) if self.scripts else self.script)(reply)
        except (asyncio.CancelledError, grpc.aio.InternalError):
            # gRPC raises InternalError if a cancel meets a write in flight.
            self.cancelled.set()

    async def Embed(self, request, context):
        reply = Reply(request, context)
        self.embed_requests.append(request)
        self.request_ids.append(reply.request_id)
        self.entered.set()
        try:
            return await self.embed(reply)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Backend:
    """The fake server: its address, its servicer and its health."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None, address: str = "127.0.0.1:0") -> None:
        self.servicer = FakeServicer()
        self.health = health.aio.HealthServicer()
        self.server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self.servicer, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        port = (
            self.server.add_secure_port(address, credentials) if credentials else self.server.add_insecure_port(address)
        )
        self.port = port
        self.address = f"{address.rpartition(':')[0]}:{port}"

    async def set_serving(self, is_serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if is_serving else statuses.NOT_SERVING
        await self.health.set("tailrace.v1.InferenceService", status)


class Bridge:
    """A running bridge, with an httpx client and bare sockets to send requests."""

    def __init__(self, port: int, client: httpx.AsyncClient, metrics: Metrics, binding_port: int | None) -> None:
        self.port = port
        self.binding_port = binding_port
        self.client = client
        self.metrics = metrics

    async def ask(self, body: object = None, *, url: str = RUN_URL, **options) -> httpx.Response:
        return await self.client.post(url, json={"prompt": "hi"} if body is None else body, **options)

    async def open(self, body: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a run over a connection of its own, which the test reads and closes itself."""
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(
            f"POST {RUN_URL} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
        )
        return reader, writer


class Server(uvicorn.Server):
    """A uvicorn server that stops on an event, instead of polling a flag ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.stopping.wait()


@asynccontextmanager
async def running_bridge(grpc_address: str, **settings) -> AsyncIterator[Bridge]:
    defaults = {"http_address": "127.0.0.1:0", "http_shutdown_grace_seconds": 1}
    chosen = Settings(grpc_address=grpc_address, **{**defaults, **settings})
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2 if chosen.binding_address else 1)]
    port, binding_port = (*(listener.getsockname()[1] for listener in listeners), None)[:2]
    metrics = Metrics()
    server = Server(uvicorn_config(create_app(chosen, binding_port=binding_port, metrics=metrics), chosen, metrics))
    serving = asyncio.create_task(server.serve(sockets=listeners))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
        yield Bridge(port, client, metrics, binding_port)
    server.stopping.set()
    await serving


class _Hurried:
    """A replacement of asyncio in uvicorn's server without the sleep of a tenth of a second when it stops."""

    def __getattr__(self, name: str) -> object:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("http_bridge.upstream.client.RETRY_PAUSES", (0.01, 0.02))
    monkeypatch.setattr("uvicorn.server.asyncio", _Hurried())


@pytest.fixture
async def backend():
    backend = Backend()
    await backend.server.start()
    yield backend
    await backend.server.stop(None)


@pytest.fixture
def servicer(backend):
    return backend.servicer


@pytest.fixture
async def start_bridge(backend):
    """Return a function that starts a bridge with the given settings. It is stopped at the end of the test."""
    async with AsyncExitStack() as stack:

        async def start(**settings) -> Bridge:
            settings = {"grpc_address": backend.address, **settings}
            return await stack.enter_async_context(running_bridge(**settings))

        yield start


@pytest.fixture
async def bridge(start_bridge):
    return await start_bridge()
