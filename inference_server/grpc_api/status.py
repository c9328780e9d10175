"""The one table from this server's errors to gRPC statuses, and how a call ends with one: google.rpc details beside it."""

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from inference_server import errors

DOMAIN = "tailrace"

Context = grpc.aio.ServicerContext[Any, Any]
STATUS: dict[type[errors.TailraceError], grpc.StatusCode] = {
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.UnknownModel: grpc.StatusCode.NOT_FOUND,
    errors.InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PromptTooLong: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NoRoomForReply: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CapacityExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ClientTooSlow: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ServerStopping: grpc.StatusCode.UNAVAILABLE,
    errors.ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    errors.GenerationFailed: grpc.StatusCode.INTERNAL,
}


async def abort(context: Context, error: errors.TailraceError) -> NoReturn:
    """End the call with the error's status and its google.rpc details in the trailing metadata."""
    code = STATUS[type(error)]
    status = status_pb2.Status(code=code.value[0], message=str(error))
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort(code, str(error), (("grpc-status-details-bin", status.SerializeToString()),))
    raise AssertionError("context.abort returned")


def _details(error: errors.TailraceError) -> list[Any]:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    details: list[Any] = [info]
    match error:
        case errors.InvalidField():
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=wrong.field, description=wrong.description)
                        for wrong in error.violations
                    ]
                )
            )
        case errors.PromptTooLong():
            info.metadata["prompt_tokens"] = str(error.prompt_tokens)
            info.metadata["context_length"] = str(error.context_length)
        case errors.NoRoomForReply():
            info.metadata["prompt_tokens"] = str(error.prompt_tokens)
            info.metadata["max_tokens"] = str(error.max_tokens)
            info.metadata["window"] = str(error.window)
        case errors.CapacityExceeded() | errors.RateLimited():
            details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after_seconds)))
    return details


def duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
