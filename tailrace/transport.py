"""The interfaces of the transports, and the choice between REST and gRPC by the address.

gRPC and the HTTP library are imported with the first client that needs them.
"""

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Protocol

from tailrace.endpoint import Endpoint
from tailrace.errors import UnknownModelError
from tailrace.request import RunInput
from tailrace.types import Embeddings, Event, Model, Task


class Transport(Protocol):
    """Sends requests to one service, blocking. Every method may raise TailraceError."""

    def stream(self, run: RunInput, timeout: float | None) -> Generator[Event, None, None]:
        """Yield the events of one reply. Closing the iterator cancels the request."""

    def embed(self, texts: Sequence[str], model: str, dimensions: int | None, timeout: float | None) -> Embeddings:
        """Return one vector for each text."""

    def models(self, timeout: float | None) -> list[Model]:
        """Return the models in the order of the catalog."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """Sends requests to one service, on asyncio. Every method may raise TailraceError."""

    def stream(self, run: RunInput, timeout: float | None) -> AsyncGenerator[Event, None]:
        """Yield the events of one reply. Closing the iterator cancels the request."""

    async def embed(
        self, texts: Sequence[str], model: str, dimensions: int | None, timeout: float | None
    ) -> Embeddings:
        """Return one vector for each text."""

    async def models(self, timeout: float | None) -> list[Model]:
        """Return the models in the order of the catalog."""

    async def close(self) -> None:
        """Close the connections."""


def transport(endpoint: Endpoint) -> Transport:
    """Return the transport for the address."""
    if endpoint.is_grpc:
        from tailrace.rpc.transport import RpcTransport

        return RpcTransport(endpoint)
    from tailrace.rest.transport import RestTransport

    return RestTransport(endpoint)


def async_transport(endpoint: Endpoint) -> AsyncTransport:
    """Return the transport on asyncio for the address."""
    if endpoint.is_grpc:
        from tailrace.rpc.async_transport import AsyncRpcTransport

        return AsyncRpcTransport(endpoint)
    from tailrace.rest.async_transport import AsyncRestTransport

    return AsyncRestTransport(endpoint)


def first_model(models: Sequence[Model], task: Task) -> str:
    """Return the name of the first model with this task. Raises UnknownModelError if there is none."""
    for model in models:
        if model.task == task:
            return model.name
    raise UnknownModelError(f"The server has no model for {task}.", reason="UNKNOWN_MODEL")
