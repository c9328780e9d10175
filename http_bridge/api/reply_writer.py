"""The interface of reply and error formats, and the parts that several formats share."""

import json
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from http_bridge.errors import ApiError
from http_bridge.protocol.schemas import Schema
from tailrace.v1.inference_pb2 import Completed, Delta, Started, TokenLogprob, ToolCall

JsonObject = dict[str, object]

EVENT_STREAM = "text/event-stream"
JSON = "application/json"
_MAX_PADDING = 50
_PADDING_LETTERS = string.ascii_lowercase + string.digits


def json_bytes(payload: Mapping[str, object]) -> bytes:
    """Return compact JSON in UTF-8."""
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


@dataclass(slots=True)
class CompleteReply:
    """A whole reply, collected for a client that did not request a stream."""

    completed: Completed
    text: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class ErrorWriter(ABC):
    """The format of a route's errors before the first byte of a reply. `schema`: JSON Schema of the payload."""

    schema: ClassVar[Schema]

    def status(self, error: ApiError) -> int:
        """Return the HTTP status of the error. Formats with other statuses override this method."""
        return error.status

    @abstractmethod
    def payload(self, error: ApiError, request_id: str) -> Mapping[str, object]:
        """Return the JSON body of the error."""


class ReplyWriter(ABC):
    """The format of one reply. Each method returns the bytes to send: whole events, or nothing.

    Attributes:
        stream_type: Content type of a stream.
        complete_type: Content type of a reply that is not streamed.
    """

    stream_type: ClassVar[str] = EVENT_STREAM
    complete_type: ClassVar[str] = JSON

    @abstractmethod
    def complete(self, reply: CompleteReply) -> bytes:
        """Return the body of a reply that is not streamed.

        Raises:
            ApiError: The reply cannot be written in this format.
        """

    def start(self, started: Started) -> bytes:
        """Return the events before all text."""
        return b""

    @abstractmethod
    def text(self, text: str) -> bytes:
        """Return the event for a piece of text. Called for each token of every stream."""

    @abstractmethod
    def delta(self, delta: Delta) -> bytes:
        """Return the events for a delta that may contain thoughts, tool calls or log probabilities as well as text."""

    @abstractmethod
    def finish(self, completed: Completed) -> bytes:
        """Return the events after all text, including the end of the stream."""

    @abstractmethod
    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return the last event of a stream that failed; `finish` is not called then."""

    def streams_refusal(self, error: ApiError) -> bool:
        """Return True if the client reads this refusal only from a stream, and not from an HTTP status."""
        return False


def usage_payload(completed: Completed, *, counts_cached: bool) -> JsonObject:
    """Return the token counts of a reply. `counts_cached`: include the number of prompt tokens from the prefix cache."""
    usage = completed.usage
    payload: JsonObject = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if counts_cached:
        payload["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return payload


def error_message(error: ApiError, request_id: str) -> str:
    """Return the error message in Workers AI's wording, with the request id at the end."""
    return f"AiError: AiError: {error.description} ({request_id})"


def padding() -> str:
    """Return 1 to 50 random characters, so that the size of a packet does not reveal the length of its token."""
    return "".join(secrets.choice(_PADDING_LETTERS) for _ in range(1 + secrets.randbelow(_MAX_PADDING)))
