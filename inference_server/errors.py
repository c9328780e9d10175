"""Every error this server answers with, as one small tree. Knows no gRPC: servicer.py maps it to statuses.

`reason` is the google.rpc.ErrorInfo reason of the contract; the message is written for the caller and never holds
anything of the server's inside.
"""

from dataclasses import dataclass
from typing import ClassVar

from tailrace_shared.config_errors import ConfigurationError


class TailraceError(Exception):
    """Base of all errors that a caller may see. `str(error)` is the sentence for the caller."""

    reason: ClassVar[str]


class Unauthenticated(TailraceError):
    """The call brought no token, or none that is let in."""

    reason = "UNAUTHENTICATED"


class UnknownModel(TailraceError):
    reason = "UNKNOWN_MODEL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request (`sampling.top_p`) and what is wrong with it."""

    field: str
    description: str


class InvalidField(TailraceError):
    reason = "INVALID_FIELD"

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{violation.field} {violation.description}" for violation in violations))
        self.violations = violations


class PromptTooLong(TailraceError):
    reason = "PROMPT_TOO_LONG"

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        super().__init__(f"the prompt has {prompt_tokens} tokens, this model accepts at most {context_length}")
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class NoRoomForReply(TailraceError):
    """Prompt and max_tokens together are longer than the window, and the caller would not have the reply cut."""

    reason = "NO_ROOM_FOR_REPLY"

    def __init__(self, prompt_tokens: int, max_tokens: int, window: int) -> None:
        super().__init__(
            f"the prompt's {prompt_tokens} tokens and max_tokens {max_tokens} exceed this model's window of {window}"
        )
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.window = window


class CapacityExceeded(TailraceError):
    """No slot is free and the caller would not wait, or the waiting room is full."""

    reason = "CAPACITY_EXCEEDED"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(TailraceError):
    """The account has sent more requests than it may."""

    reason = "RATE_LIMITED"

    def __init__(self, *, retry_after_seconds: float) -> None:
        super().__init__("this account has sent more requests than it may")
        self.retry_after_seconds = retry_after_seconds


class ClientTooSlow(TailraceError):
    """The reply was not read for so long that it was given up."""

    reason = "CLIENT_TOO_SLOW"


class ServerStopping(TailraceError):
    reason = "SERVER_STOPPING"


class ModelNotReady(TailraceError):
    reason = "MODEL_NOT_READY"


class GenerationFailed(TailraceError):
    """The forward pass raised. The log has the cause, the caller only this sentence."""

    reason = "GENERATION_FAILED"


class UnsupportedModel(ConfigurationError):
    """The model, or its catalog entry, needs something that its engine does not do; the message names it."""
