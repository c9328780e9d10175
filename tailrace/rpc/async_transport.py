"""Calls an inference server, on asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from tailrace.endpoint import Endpoint
from tailrace.errors import ConnectionFailedError
from tailrace.request import RunInput, invalid_value
from tailrace.rpc.errors import rpc_error
from tailrace.rpc.messages import embeddings, events, model, run_request
from tailrace.rpc.session import REQUEST_ID_KEY, Metadata, credentials, metadata, options
from tailrace.types import Embeddings, Event, Model
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:
    from tailrace.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_Result = TypeVar("_Result")


class AsyncRpcTransport:
    """A channel to one inference server, for one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Prepare the channel, which is created with the first call: it belongs to that call's event loop."""
        self._endpoint = endpoint
        self._channel: grpc.aio.Channel | None = None
        self._calls: set[grpc.aio.Call] = set()  # those that are not complete

    async def stream(self, run: RunInput, timeout: float | None) -> AsyncGenerator[Event, None]:
        """Yield the events of one reply. Closing the iterator cancels the call."""
        try:
            request = run_request(run, self._endpoint.account)
        except (ValueError, TypeError) as error:
            raise invalid_value(error) from None
        sent = metadata(self._endpoint)
        call = self._stub().Run(request, timeout=timeout, metadata=sent)
        with self._open(call, timeout, sent):
            async for response in call:
                for event in events(response):
                    yield event

    async def embed(
        self, texts: Sequence[str], model: str, dimensions: int | None, timeout: float | None
    ) -> Embeddings:
        """Return the vectors of the texts."""
        try:
            request = pb.EmbedRequest(model=model, texts=texts, account=self._endpoint.account, dimensions=dimensions)
        except (ValueError, TypeError) as error:
            raise invalid_value(error) from None
        return embeddings(await self._call(self._stub().Embed, request, timeout), model)

    async def models(self, timeout: float | None) -> list[Model]:
        """Return the models of the server."""
        reply = await self._call(self._stub().ListModels, pb.ListModelsRequest(), timeout)
        return list(map(model, reply.models))

    async def close(self) -> None:
        """Cancel the calls that are not complete, and close the channel, which alone would not cancel all of them."""
        calls, self._calls = self._calls, set()
        for call in calls:
            call.cancel()
        if self._channel is not None:
            await self._channel.close()

    def _stub(self) -> "InferenceServiceAsyncStub":
        if self._channel is None:
            secure = credentials(self._endpoint)
            self._channel = (
                grpc.aio.insecure_channel(self._endpoint.target, options(self._endpoint))
                if secure is None
                else grpc.aio.secure_channel(self._endpoint.target, secure, options(self._endpoint))
            )
        return InferenceServiceStub(self._channel)

    async def _call(
        self, method: "Callable[..., grpc.aio.UnaryUnaryCall[Any, _Result]]", request: Any, timeout: float | None
    ) -> _Result:
        sent = metadata(self._endpoint)
        call = method(request, timeout=timeout, metadata=sent)
        with self._open(call, timeout, sent):
            return await call

    @contextmanager
    def _open(self, call: "grpc.aio.Call", timeout: float | None, sent: Metadata) -> Iterator[None]:
        """Convert the errors of a call within the block, and cancel it at the end unless it is complete."""
        self._calls.add(call)
        try:
            yield
        except grpc.RpcError as error:
            raise rpc_error(error, self._endpoint, timeout, sent) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if call in self._calls or (task is not None and task.cancelling()):
                raise  # the caller's task is cancelled
            sentence = "The client was closed before the reply was complete."
            raise ConnectionFailedError(sentence, request_id=dict(sent).get(REQUEST_ID_KEY)) from None
        finally:
            self._calls.discard(call)
            call.cancel()
