"""Workers AI's JSON to the contract's messages and back, and gRPC's errors to Cloudflare's.

Pure: knows both forms of a request, a reply and an error; knows nothing of connections.
"""

import math
import re
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from http_bridge.errors import ApiError, internal_error
from http_bridge.schemas import RunBody, bad_input
from tailrace.v1.inference_pb2 import Chat, ChatTurn, Completed, RunRequest, Sampling

JsonObject = dict[str, object]

# Without `max_tokens`, a reply that is not streamed stays short enough to wait for.
DEFAULT_MAX_TOKENS = 256
ERROR_DOMAIN = "tailrace"
_DETAILS_KEY = "grpc-status-details-bin"
# Where the contract and a body use different words; the first that fits counts.
_BODY_NAMES = (("sampling.", ""), ("chat.turns", "messages"), ("chat", "messages"), ("text", "prompt"))


def run_request(body: RunBody, *, model: str, account: str) -> RunRequest:
    """The contract's request for a valid body."""
    max_tokens = body.max_tokens
    if max_tokens is None and not body.stream:
        max_tokens = DEFAULT_MAX_TOKENS
    request = RunRequest(model=model, account=account, reject_if_busy=body.reject_if_busy)
    request.sampling.CopyFrom(
        Sampling(
            max_tokens=max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            seed=body.seed,
            repetition_penalty=body.repetition_penalty,
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            stop=body.stop,
        )
    )
    if body.prompt is not None and body.raw:
        request.text = body.prompt
    elif body.prompt is not None:
        request.chat.turns.add(role="user", content=body.prompt)
    else:
        request.chat.CopyFrom(Chat(turns=[ChatTurn(role=turn.role, content=turn.content) for turn in body.turns]))
    return request


def usage(completed: Completed) -> JsonObject:
    prompt_tokens, completion_tokens = completed.usage.prompt_tokens, completed.usage.completion_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def reply_payload(text: str, completed: Completed) -> JsonObject:
    """The body of a reply that is not streamed."""
    result = {"response": text, "usage": usage(completed)}
    return {"result": result, "success": True, "errors": [], "messages": []}


def usage_event(completed: Completed) -> JsonObject:
    return {"response": "", "usage": usage(completed)}


def failure_event(error: ApiError, request_id: str) -> JsonObject:
    """The last event of a stream that failed; its empty `response` adds nothing to a page that appends it."""
    return {"response": "", "errors": [{"code": error.code, "message": _message(error, request_id)}], "success": False}


def model_error_payload(error: ApiError, request_id: str) -> JsonObject:
    """The body of an error on the way to a model or in it."""
    entry = {"message": _message(error, request_id), "code": error.code}
    return {"errors": [entry], "success": False, "result": {}, "messages": []}


def router_error_payload(error: ApiError) -> JsonObject:
    """The body of an error before any model: routes, methods, credentials."""
    entry = {"code": error.code, "message": error.description}
    return {"result": None, "success": False, "errors": [entry], "messages": []}


def rpc_api_error(error: grpc.aio.AioRpcError, *, model: str) -> ApiError:
    """What a failed call to the inference server means to the client.

    Decided by the ErrorInfo's reason, without one by the status code, never by text.
    """
    details = _Details(error)
    translate = _BY_REASON.get(details.reason)
    api_error = translate(details, model) if translate else _by_code(error.code())
    api_error.retry_after_seconds = details.retry_after_seconds
    return api_error


def request_timeout() -> ApiError:
    return ApiError(408, 3007, "Request timeout")


def _message(error: ApiError, request_id: str) -> str:
    return f"AiError: AiError: {error.description} ({request_id})"


class _Details:
    """The google.rpc details of a failed call; empty where the call carries none or they cannot be read."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.info = error_details_pb2.ErrorInfo()
        self.bad_request = error_details_pb2.BadRequest()
        self.retry_info = error_details_pb2.RetryInfo()
        for packed in _status(error).details:
            for message in (self.info, self.bad_request, self.retry_info):
                packed.Unpack(message)

    @property
    def reason(self) -> str:
        return self.info.reason if self.info.domain == ERROR_DOMAIN else ""

    @property
    def retry_after_seconds(self) -> int | None:
        delay = self.retry_info.retry_delay
        return max(1, math.ceil(delay.seconds + delay.nanos / 1e9)) if self.retry_info.HasField("retry_delay") else None


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    value = (error.trailing_metadata() or {}).get(_DETAILS_KEY)
    try:
        return status_pb2.Status.FromString(value) if isinstance(value, bytes) else status_pb2.Status()
    except DecodeError:
        return status_pb2.Status()


def _invalid_field(details: _Details) -> ApiError:
    violations = [f"'{_body_path(wrong.field)}' {wrong.description}" for wrong in details.bad_request.field_violations]
    return bad_input(", ".join(violations) or "the model server refused a field")


def _body_path(field: str) -> str:
    """Where a body has what the contract calls `field`: chat.turns[0].role is /messages/0/role."""
    path = re.sub(r"\[(\d+)\]", r".\1", field)
    for contract_name, body_name in _BODY_NAMES:
        if path.startswith(contract_name):
            path = body_name + path.removeprefix(contract_name)
            break
    return "/" + path.replace(".", "/")


def _prompt_too_long(details: _Details) -> ApiError:
    prompt_tokens, context_length = (details.info.metadata.get(key, "?") for key in ("prompt_tokens", "context_length"))
    return ApiError(
        413,
        5021,
        f"The number of input tokens ({prompt_tokens}) exceeded this model context window limit ({context_length}).",
    )


def _capacity_exceeded() -> ApiError:
    return ApiError(429, 3040, "Capacity temporarily exceeded, please try again.")


def _unavailable() -> ApiError:
    return ApiError(503, 7009, "Upstream service unavailable")


_BY_REASON: dict[str, Callable[[_Details, str], ApiError]] = {
    "UNKNOWN_MODEL": lambda details, model: ApiError(400, 5007, f"No such model {model} or task"),
    "INVALID_FIELD": lambda details, model: _invalid_field(details),
    "PROMPT_TOO_LONG": lambda details, model: _prompt_too_long(details),
    "CAPACITY_EXCEEDED": lambda details, model: _capacity_exceeded(),
    "SERVER_STOPPING": lambda details, model: _unavailable(),
    "MODEL_NOT_READY": lambda details, model: _unavailable(),
    "GENERATION_FAILED": lambda details, model: ApiError(500, 3000, "The model failed while generating this reply."),
}


def _by_code(code: grpc.StatusCode) -> ApiError:
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return request_timeout()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # The server gives a reason when it is full; without one it is gRPC's own limit on the size of a message.
        return ApiError(413, 3006, "Request is too large")
    return internal_error()
