"""Polls the inference servers every 2 s: their addresses, their health and the models that they host.

Does not depend on runs.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

from http_bridge.upstream.channels import SERVICE_NAME, Channels, Group
from http_bridge.upstream.resolver import Address, Addresses
from http_bridge.upstream.tls import Credentials
from tailrace.v1.inference_pb2 import ListModelsRequest, Model, Task

POLL_SECONDS = 2.0
# For this time in seconds after a poll, requests cause no other poll.
_REFRESH_SECONDS = 0.25
# Longest time in seconds for one answer. A slow server delays the next poll.
_ANSWER_SECONDS = 2.0
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Server:
    """The last answers of one server.

    Attributes:
        models: Its models by name; None until its first answer.
        is_current: Whether the last poll was answered. A restarted server may have other models.
        is_serving: Whether its health was SERVING at the last poll.
    """

    models: dict[str, Model] | None = None
    is_current: bool = False
    is_serving: bool = False


class Servers:
    """The registry of inference servers. Create it inside the event loop that uses it."""

    def __init__(self, targets: tuple[str, ...], credentials: Credentials) -> None:
        self._addresses = Addresses(targets)
        self._credentials = credentials
        self.channels = Channels(credentials)
        self._servers: dict[Address, _Server] = {}
        self._watching: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = -math.inf

    async def start(self) -> None:
        """Look up the names, then poll every 2 s in the background. Call it once."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._addresses.refresh()
        except TimeoutError:
            logger.warning("looking up the name of the inference server takes longer than %g s", _ANSWER_SECONDS)
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop polling and close the channels. Running calls end immediately."""
        for task in (self._watching, self._refreshing):
            if task is not None:
                task.cancel()
        await self.channels.close()

    @property
    def all(self) -> Group:
        """The addresses of all servers; never empty."""
        return self._addresses.current

    @property
    def num_serving(self) -> int:
        """Number of servers whose health was SERVING at the last poll."""
        return sum(server.is_serving for server in self._servers.values())

    def hosting(self, model: str) -> Group:
        """Return the servers that host the model; all servers if none does, so that their error reaches the client."""
        known = tuple(address for address in self.all if model in (self._models(address) or ()))
        return known or self.all

    async def models_of(self, address: Address, timeout_seconds: float) -> Sequence[Model]:
        """Return the models of one server. Raises AioRpcError if it does not answer in time."""
        async with self.channels.for_call((address,)) as channel:
            reply = await channel.inference.ListModels(
                ListModelsRequest(), metadata=self._credentials.metadata, timeout=timeout_seconds
            )
        return reply.models

    async def is_serving(self, address: Address, timeout_seconds: float) -> bool:
        """Return True if the server's health is SERVING. Raises AioRpcError if it does not answer in time."""
        request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        async with self.channels.for_call((address,)) as channel:
            reply = await channel.health.Check(request, metadata=self._credentials.metadata, timeout=timeout_seconds)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def find_model(self, name: str) -> Model | None:
        """Return the model's last known description; None if no server is known to host it."""
        return next((models[name] for address in self.all if name in (models := self._models(address) or {})), None)

    def find_adapter(self, name: str) -> Model | None:
        """Return the first known model with a LoRA adapter of this name; None if there is none."""
        models = (model for address in self.all for model in (self._models(address) or {}).values())
        return next((model for model in models if name in model.adapters), None)

    def has_current_model(self, name: str) -> bool:
        """Return True if a server that answered the last poll hosts the model. Then `find_model` is up to date."""
        servers = (self._servers.get(address) for address in self.all)
        return any(server.is_current and name in (server.models or ()) for server in servers if server is not None)

    def task_of(self, model: str) -> int | None:
        """Return the task of a model (a value of inference.proto's Task), or None if no server has listed the model."""
        found = self.find_model(model)
        return None if found is None else found.task or Task.TASK_TEXT_GENERATION

    async def refresh(self) -> None:
        """Poll the servers now, and wait for at most 2 s.

        Simultaneous calls share one poll. If a poll ended less than 0.25 s ago, there is no new one.
        """
        if self._refreshing is None or self._refreshing.done():
            if time.monotonic() - self._refreshed_at < _REFRESH_SECONDS:
                return
            self._refreshing = asyncio.create_task(self._poll_safely())
        await asyncio.wait((self._refreshing,), timeout=_ANSWER_SECONDS)

    def _models(self, address: Address) -> dict[str, Model] | None:
        server = self._servers.get(address)
        return None if server is None else server.models

    async def _watch(self) -> None:
        while True:
            await self._poll_safely()
            await asyncio.sleep(POLL_SECONDS)

    async def _poll_safely(self) -> None:
        try:
            await self._poll()
        except Exception:
            logger.exception("polling the inference servers failed")
        self._refreshed_at = time.monotonic()

    async def _poll(self) -> None:
        await self._addresses.refresh()
        addresses = self.all
        self._servers = {address: self._servers.get(address, _Server()) for address in addresses}
        await asyncio.gather(*(self._ask(address, server) for address, server in self._servers.items()))
        groups = {self.hosting(model) for server in self._servers.values() for model in server.models or ()}
        await self.channels.retain({addresses, *((address,) for address in addresses), *groups})

    async def _ask(self, address: Address, server: _Server) -> None:
        await asyncio.gather(self._ask_health(address, server), self._ask_models(address, server))

    async def _ask_health(self, address: Address, server: _Server) -> None:
        try:
            server.is_serving = await self.is_serving(address, _ANSWER_SECONDS)
        except grpc.aio.AioRpcError:
            server.is_serving = False

    async def _ask_models(self, address: Address, server: _Server) -> None:
        # The models of a server that does not answer stay registered: gRPC itself detects a lost connection.
        try:
            server.models = {model.name: model for model in await self.models_of(address, _ANSWER_SECONDS)}
            server.is_current = True
        except grpc.aio.AioRpcError:
            server.is_current = False
