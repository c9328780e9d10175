"""Errors that this server reports to clients, and the error for a model that cannot be served.

Every subclass of TailraceError has a reason and a gRPC status code, which inference.proto lists. Messages are written
for clients and contain no internals. Does not depend on gRPC: status codes are names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tailrace_shared.config_errors import ConfigurationError


class TailraceError(Exception):
    """Base class of all errors that a client may see. `str(error)` is the message for the client.

    Attributes:
        reason: Reason of the google.rpc.ErrorInfo.
        grpc_code: Name of the gRPC status code, a member of grpc.StatusCode.
    """

    reason: ClassVar[str]
    grpc_code: ClassVar[str]


class Unauthenticated(TailraceError):
    """The call has no bearer token, or the tokens file does not contain the token's digest."""

    reason = "UNAUTHENTICATED"
    grpc_code = "UNAUTHENTICATED"


class UnknownModel(TailraceError):
    """The server does not serve the requested model."""

    reason = "UNKNOWN_MODEL"
    grpc_code = "NOT_FOUND"


class WrongTask(TailraceError):
    """The method does not match the model's task.

    Embed was called for a model that generates text, or Run or CountTokens for one that embeds text.
    """

    reason = "WRONG_TASK"
    grpc_code = "INVALID_ARGUMENT"


class UnknownAdapter(TailraceError):
    """The model has no LoRA adapter with the requested name."""

    reason = "UNKNOWN_ADAPTER"
    grpc_code = "NOT_FOUND"

    def __init__(self, model: str, adapter: str, adapters: Sequence[str]) -> None:
        """Create the error. `adapters`: the names of the model's adapters, which the message lists."""
        listed = f"; its adapters are {', '.join(adapters)}" if adapters else ""
        super().__init__(f"the model {model} has no LoRA adapter {adapter!r}{listed}")
        self.adapters = adapters


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid field of a request.

    Attributes:
        field: Its path, for example `sampling.top_p`.
        description: The rest of a sentence that begins with the path, for example "must be above 0".
    """

    field: str
    description: str


class InvalidField(TailraceError):
    """At least one field of the request is invalid.

    Attributes:
        violations: The invalid fields.
        is_transient: True if the same request may be accepted later, because the check had too little time.
    """

    reason = "INVALID_FIELD"
    grpc_code = "INVALID_ARGUMENT"

    def __init__(self, *violations: FieldViolation, is_transient: bool = False) -> None:
        super().__init__("; ".join(f"{violation.field} {violation.description}" for violation in violations))
        self.violations = violations
        self.is_transient = is_transient


class PromptTooLong(TailraceError):
    """The prompt exceeds the model's context length. Both lengths are in tokens."""

    reason = "PROMPT_TOO_LONG"
    grpc_code = "INVALID_ARGUMENT"

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        super().__init__(f"the prompt has {prompt_tokens} tokens, this model accepts at most {context_length}")
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class NoRoomForReply(TailraceError):
    """Prompt and max_tokens together exceed the window, and the request does not allow a shorter reply.

    Prompt, max_tokens and window are in tokens.
    """

    reason = "NO_ROOM_FOR_REPLY"
    grpc_code = "INVALID_ARGUMENT"

    def __init__(self, prompt_tokens: int, max_tokens: int, window: int) -> None:
        super().__init__(
            f"the prompt's {prompt_tokens} tokens and max_tokens {max_tokens} exceed this model's window of {window}"
        )
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.window = window


class CapacityExceeded(TailraceError):
    """No slot is free, and the request cannot wait.

    The request forbids waiting, the wait queue is full, or the expected wait exceeds the client's deadline.
    """

    reason = "CAPACITY_EXCEEDED"
    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(TailraceError):
    """The account has sent more requests than its limit per minute."""

    reason = "RATE_LIMITED"
    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, *, retry_after_seconds: float) -> None:
        super().__init__("this account has sent more requests than it may")
        self.retry_after_seconds = retry_after_seconds


class ClientTooSlow(TailraceError):
    """The server aborted the reply because the client did not read it within the write timeout."""

    reason = "CLIENT_TOO_SLOW"
    grpc_code = "RESOURCE_EXHAUSTED"


class ServerStopping(TailraceError):
    """The server is shutting down. It refuses new requests; running requests fail at the end of the grace period."""

    reason = "SERVER_STOPPING"
    grpc_code = "UNAVAILABLE"


class ModelNotReady(TailraceError):
    """The models are still loading, or the engine has made no step within the stall limit."""

    reason = "MODEL_NOT_READY"
    grpc_code = "UNAVAILABLE"


class GenerationFailed(TailraceError):
    """The server failed to compute the result. The log contains the cause, and the client gets a general message."""

    reason = "GENERATION_FAILED"
    grpc_code = "INTERNAL"


class NotRecorded(TailraceError):
    """The server only replays recordings, and has none of this request.

    Attributes:
        metadata: The constructor's arguments by name, without `method`: `folder`, `command` and the items of `nearest`.
    """

    reason = "NOT_RECORDED"
    grpc_code = "NOT_FOUND"

    def __init__(self, folder: str, command: str, method: str, **nearest: str) -> None:
        """Create the error.

        Args:
            folder: The folder of the recordings.
            command: The command that starts a server which records the request.
            method: Name of the called method.
            nearest: "nearest", the name of the nearest recording's file; "field", the path of the first field that
                differs; "requested" and "recorded", the field's values. Empty if the folder has no recordings of this
                method.
        """
        self.metadata = {"folder": folder, "command": command, **nearest}
        where = f"it has no recordings of {method}"
        if nearest:
            where = (
                f"{nearest['field']} is {nearest['requested']}, and {nearest['recorded']} in the nearest recording "
                f"{nearest['nearest']}"
            )
        super().__init__(
            f"no recording of this request in {folder}: {where}; to record it, send it to a server with "
            f"TAILRACE_RECORDINGS_MODE=auto, or to this one: {command}"
        )


class UnsupportedModel(ConfigurationError):
    """The model, or its catalog entry, needs a feature that its engine does not have. The message names the feature."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if it has no message."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
