"""Calls an inference server, blocking."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import grpc

from tailrace.endpoint import Endpoint
from tailrace.request import RunInput, invalid_value
from tailrace.rpc.errors import rpc_error
from tailrace.rpc.messages import embeddings, events, model, run_request
from tailrace.rpc.session import credentials, metadata, options
from tailrace.types import Embeddings, Event, Model
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

_Result = TypeVar("_Result")


class RpcTransport:
    """A channel to one inference server. Thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Set up the channel. No connection is opened yet."""
        self._endpoint = endpoint
        secure = credentials(endpoint)
        self._channel = (
            grpc.insecure_channel(endpoint.target, options(endpoint))
            if secure is None
            else grpc.secure_channel(endpoint.target, secure, options(endpoint))
        )
        self._stub = InferenceServiceStub(self._channel)

    def stream(self, run: RunInput, timeout: float | None) -> Generator[Event, None, None]:
        """Yield the events of one reply. Closing the iterator cancels the call."""
        try:
            request = run_request(run, self._endpoint.account)
        except (ValueError, TypeError) as error:
            raise invalid_value(error) from None
        sent = metadata(self._endpoint)
        call = self._stub.Run(request, timeout=timeout, metadata=sent)
        try:
            for response in call:
                yield from events(response)
        except grpc.RpcError as error:
            raise rpc_error(error, self._endpoint, timeout, sent) from None
        finally:
            call.cancel()

    def embed(self, texts: Sequence[str], model: str, dimensions: int | None, timeout: float | None) -> Embeddings:
        """Return the vectors of the texts."""
        try:
            request = pb.EmbedRequest(model=model, texts=texts, account=self._endpoint.account, dimensions=dimensions)
        except (ValueError, TypeError) as error:
            raise invalid_value(error) from None
        return embeddings(self._call(self._stub.Embed, request, timeout), model)

    def models(self, timeout: float | None) -> list[Model]:
        """Return the models of the server."""
        return list(map(model, self._call(self._stub.ListModels, pb.ListModelsRequest(), timeout).models))

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, method: Callable[..., _Result], request: Any, timeout: float | None) -> _Result:
        sent = metadata(self._endpoint)
        try:
            return method(request, timeout=timeout, metadata=sent)
        except grpc.RpcError as error:
            raise rpc_error(error, self._endpoint, timeout, sent) from None
