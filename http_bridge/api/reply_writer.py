"""What every form of a reply has, and what they share."""

import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from http_bridge.errors import ApiError
from tailrace.v1.inference_pb2 import Completed, Delta, Started, TokenLogprob, ToolCall

JsonObject = dict[str, object]

EVENT_STREAM = "text/event-stream"
JSON = "application/json"
_MAX_PADDING = 50
_PADDING_LETTERS = string.ascii_lowercase + string.digits


@dataclass(slots=True)
class Whole:
    """A reply that is complete, collected for a client that did not ask for a stream."""

    completed: Completed
    text: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class ErrorForm(ABC):
    """How a refusal is written where a route's replies have this form."""

    @abstractmethod
    def payload(self, error: ApiError, request_id: str) -> Mapping[str, object]:
        """The JSON body of an answer that is an error."""


class ReplyForm(ABC):
    """How one reply is written. Each method returns the bytes to send, perhaps none."""

    stream_type: ClassVar[str] = EVENT_STREAM
    whole_type: ClassVar[str] = JSON

    @abstractmethod
    def whole(self, reply: Whole) -> bytes:
        """The body of a reply that is not streamed. Raises ApiError if it cannot be given in this form."""

    def opening(self, started: Started) -> bytes:
        """What precedes all text."""
        return b""

    @abstractmethod
    def text(self, text: str) -> bytes:
        """A piece of text. It is called for each token of every stream."""

    @abstractmethod
    def delta(self, delta: Delta) -> bytes:
        """A delta that holds more than text: tool calls or log probabilities."""

    @abstractmethod
    def end(self, completed: Completed) -> bytes:
        """What follows all text, the end of the stream included."""

    @abstractmethod
    def failure(self, error: ApiError, request_id: str) -> bytes:
        """The last event of a stream that failed; no end follows it."""


def usage_payload(completed: Completed, *, counts_cached: bool) -> JsonObject:
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
    return f"AiError: AiError: {error.description} ({request_id})"


def padding() -> str:
    """1 to 50 random characters, so that the size of a packet says little about the token in it."""
    return "".join(secrets.choice(_PADDING_LETTERS) for _ in range(1 + secrets.randbelow(_MAX_PADDING)))
