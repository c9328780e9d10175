"""Converts gRPC errors to the client's errors."""

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from tailrace.endpoint import Endpoint
from tailrace.errors import (
    AuthenticationError,
    ConnectionFailedError,
    DeadlineError,
    ForbiddenError,
    GenerationError,
    InvalidRequestError,
    NotRecordedError,
    OverloadedError,
    PromptTooLongError,
    RateLimitError,
    TailraceError,
    UnavailableError,
    UnknownModelError,
)
from tailrace.rpc.session import REQUEST_ID_KEY, Metadata

_DETAILS_KEY = "grpc-status-details-bin"
_BY_REASON: dict[str, type[TailraceError]] = {
    "UNAUTHENTICATED": AuthenticationError,
    "UNKNOWN_MODEL": UnknownModelError,
    "WRONG_TASK": UnknownModelError,
    "UNKNOWN_ADAPTER": InvalidRequestError,
    "INVALID_FIELD": InvalidRequestError,
    "PROMPT_TOO_LONG": PromptTooLongError,
    "NO_ROOM_FOR_REPLY": PromptTooLongError,
    "CAPACITY_EXCEEDED": OverloadedError,
    "RATE_LIMITED": RateLimitError,
    "CLIENT_TOO_SLOW": DeadlineError,
    "SERVER_STOPPING": UnavailableError,
    "MODEL_NOT_READY": UnavailableError,
    "NOT_RECORDED": NotRecordedError,
    "GENERATION_FAILED": GenerationError,
}
# Class by gRPC status, if the server sent no reason, or a reason that this version does not support.
_BY_STATUS: dict[str, type[TailraceError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "NOT_FOUND": InvalidRequestError,
    "FAILED_PRECONDITION": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    # The message exceeded gRPC's own limit. A server without capacity sends a reason.
    "RESOURCE_EXHAUSTED": InvalidRequestError,
    "UNIMPLEMENTED": InvalidRequestError,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": ForbiddenError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "UNAVAILABLE": ConnectionFailedError,
    # Neither service sends it: the client was closed, or a proxy ended the call.
    "CANCELLED": ConnectionFailedError,
}


def rpc_error(error: grpc.RpcError, endpoint: Endpoint, timeout: float | None, sent: Metadata) -> TailraceError:
    """Return the client's error for a failed call. `sent`: the call's own metadata."""
    status = error.code().name if isinstance(error, grpc.Call) or hasattr(error, "code") else "UNKNOWN"
    info, bad, retry = _details(error)
    kind = _BY_REASON.get(info.reason) or _BY_STATUS.get(status, GenerationError)
    return kind(
        _sentence(error, endpoint, timeout, status, info.reason, bad),
        reason=info.reason,
        grpc_status=status,
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        request_id=dict(sent).get(REQUEST_ID_KEY),
    )


def _sentence(
    error: grpc.RpcError,
    endpoint: Endpoint,
    timeout: float | None,
    status: str,
    reason: str,
    bad: error_details_pb2.BadRequest,
) -> str:
    details = (error.details() if hasattr(error, "details") else "") or ""
    if bad.field_violations:
        return "; ".join(f"{each.field} {each.description}" for each in bad.field_violations) + "."
    if reason:
        return details[:1].upper() + details[1:].rstrip(".") + "."
    if status == "UNAVAILABLE":
        hint = "" if not endpoint.has_tls else ", or one side does not trust the certificate of the other"
        return f"No inference server answers at {endpoint.url}{hint} ({details.rstrip('.')}): start one with `tailrace serve`."
    if status == "DEADLINE_EXCEEDED" and timeout is not None:
        return f"The reply was not complete within timeout, {timeout:g} s."
    return f"The call to {endpoint.url} failed with {status}: {details.rstrip('.')}."


def _details(
    error: grpc.RpcError,
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo]:
    found = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    packed = _trailing_metadata(error).get(_DETAILS_KEY)
    try:
        status = status_pb2.Status.FromString(packed) if isinstance(packed, bytes) else status_pb2.Status()
    except DecodeError:
        return found
    for each in status.details:
        for message in found:
            each.Unpack(message)
    return found


def _trailing_metadata(error: grpc.RpcError) -> dict[str, str | bytes]:
    """Return the trailing metadata of a failed call, which may be a synchronous call or one of grpc.aio."""
    method = getattr(error, "trailing_metadata", None)
    return {str(key): value for key, value in (method() or ())} if method else {}
