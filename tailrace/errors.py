"""The errors that both clients raise. REST and gRPC raise the same classes for the same cause.

Catch `TailraceError` for all of them.
"""

from typing import ClassVar


class TailraceError(Exception):
    """A request that failed or was refused. The message is one sentence.

    Attributes:
        is_retryable: Whether the same request may succeed a little later.
        message: The sentence.
        reason: The cause as the gRPC contract names it, such as "CAPACITY_EXCEEDED"; empty if it is unknown. Over REST
            it is derived from `code` or `http_status`.
        code: Cloudflare's error code; None over gRPC and where no server answered.
        http_status: HTTP status, 200 for an error within a stream; None over gRPC and where no server answered.
        grpc_status: Name of the gRPC status, such as "RESOURCE_EXHAUSTED"; None over REST.
        retry_after: Seconds after which a retry may succeed, as the server computed them; None if it sent none.
        request_id: Id of the request in the logs of the services; None over REST if no server answered.
    """

    is_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: int | None = None,
        http_status: int | None = None,
        grpc_status: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.http_status = http_status
        self.grpc_status = grpc_status
        self.retry_after = retry_after
        self.request_id = request_id


class InvalidRequestError(TailraceError):
    """A field of the request is wrong, or the request is too large. The message names the field or the limit."""


class PromptTooLongError(InvalidRequestError):
    """The prompt, or the prompt with `max_tokens`, is longer than the model's context. The message has the numbers."""


class UnknownModelError(TailraceError):
    """No server has the model, or the model has another task. For an unknown model, the message lists the models."""


class NotRecordedError(InvalidRequestError):
    """The server replays recordings and has none of this request. The message names the folder and the nearest recording."""


class AuthenticationError(TailraceError):
    """The token is missing or wrong."""


class ForbiddenError(TailraceError):
    """The token belongs to another account, or the bridge refuses this host name."""


class RateLimitError(TailraceError):
    """The account sent more requests than its limit allows."""

    is_retryable = True


class OverloadedError(TailraceError):
    """The server has no capacity for the request now."""

    is_retryable = True


class UnavailableError(TailraceError):
    """The server is loading, stopping or stalled, or the bridge cannot reach it."""

    is_retryable = True


class ConnectionFailedError(UnavailableError):
    """No server answers at the address, or the connection broke."""


class DeadlineError(TailraceError):
    """The reply was not complete within `timeout` or `total_timeout`, or within the service's own limit."""


class GenerationError(TailraceError):
    """The server failed while it computed the reply. Its log has the cause under the request id."""
