"""Ends a call with an error's gRPC status and its google.rpc details."""

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from inference_server import errors

DOMAIN = "tailrace"

Context = grpc.aio.ServicerContext[Any, Any]


async def abort(context: Context, error: errors.TailraceError) -> NoReturn:
    """End the call with the error's status code and message. The google.rpc details are in the trailing metadata."""
    code = grpc.StatusCode[error.grpc_code]
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
        case errors.UnknownAdapter():
            info.metadata["adapters"] = "\n".join(error.adapters)
        case errors.NotRecorded():
            for name, value in error.metadata.items():
                info.metadata[name] = value
        case errors.CapacityExceeded() | errors.RateLimited():
            details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after_seconds)))
    return details


def duration(seconds: float) -> duration_pb2.Duration:
    """Return `seconds` as a protobuf Duration, rounded down to nanoseconds."""
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
