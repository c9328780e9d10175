"""The result of parsing an embedding request, and the interface of its parsers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from http_bridge.api.base import IncomingRequest
from http_bridge.api.reply_writer import ErrorWriter
from tailrace.v1.inference_pb2 import EmbedRequest, EmbedResponse


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """A parsed request: the message to the inference server, and the writer of the reply's JSON."""

    request: EmbedRequest
    write: Callable[[EmbedResponse], bytes]


class EmbeddingParser(Protocol):
    """Reads the embedding requests of one kind of route."""

    @property
    def errors(self) -> ErrorWriter:
        """The format of this route's errors."""

    def parse(self, incoming: IncomingRequest) -> EmbeddingJob:
        """Return the parsed request.

        Raises:
            ApiError: The request is invalid.
        """


class MixedParser(EmbeddingParser, Protocol):
    """Reads the embedding requests of a route that also runs models of another task."""

    def target(self, incoming: IncomingRequest) -> "tuple[str, bool | None]":
        """Return the model's name, and whether the body has the fields of an embedding request (None: it is a batch).

        Raises:
            ApiError: The request names no model, or its body is not valid JSON.
        """
