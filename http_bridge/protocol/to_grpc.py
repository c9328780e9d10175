"""A body to the contract's request, and gRPC's errors to Cloudflare's.

Pure: knows both forms of a request and of an error; knows nothing of connections, or of how an error is written.
"""

import math
import re
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from http_bridge.errors import ApiError, internal_error
from http_bridge.protocol.profiles import DEFAULT_MAX_TOKENS, Profile
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.validation import bad_input
from tailrace.v1.inference_pb2 import (
    Chat,
    ChatTurn,
    ResponseFormat,
    RunRequest,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)

ERROR_DOMAIN = "tailrace"
_DETAILS_KEY = "grpc-status-details-bin"
# Where the contract and a body use different words; the first that fits counts.
_BODY_NAMES = (
    ("sampling.", ""),
    ("chat.turns", "messages"),
    ("chat.tools", "tools"),
    ("chat.tool_", "tool_"),
    ("chat", "messages"),
    ("text", "prompt"),
    ("response_format", "response_format"),
)
_TOOL_CHOICES = {
    "auto": ToolChoice.TOOL_CHOICE_AUTO,
    "none": ToolChoice.TOOL_CHOICE_NONE,
    "required": ToolChoice.TOOL_CHOICE_REQUIRED,
}


def run_request(body: RunBody, profile: Profile, *, model: str, account: str) -> RunRequest:
    """The contract's request for a valid body."""
    request = RunRequest(model=model, account=account, reject_if_busy=body.reject_if_busy)
    request.sampling.CopyFrom(
        # The table of parameters and the contract have the same names; a test compares them.
        Sampling(**{"max_tokens": _default_max_tokens(body, profile), **body.sampling}, stop=body.stop)  # type: ignore[arg-type]
    )
    if body.prompt is not None and body.raw:
        request.text = body.prompt
    elif body.prompt is not None:
        request.chat.turns.add(role="user", content=body.prompt)
    else:
        request.chat.CopyFrom(_chat(body))
    if body.json_schema is not None:
        request.response_format.CopyFrom(_response_format(body.json_schema))
    if body.logprobs is not None:
        request.logprobs.top = body.logprobs
        request.logprobs.SetInParent()
    request.max_tokens_must_fit = profile.must_fit
    return request


def _default_max_tokens(body: RunBody, profile: Profile) -> int | None:
    return profile.stream_max_tokens if body.stream else DEFAULT_MAX_TOKENS


def _chat(body: RunBody) -> Chat:
    return Chat(
        turns=[
            ChatTurn(
                role=turn.role,
                content=turn.content,
                tool_calls=[ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in turn.tool_calls],
                tool_call_id=turn.tool_call_id,
                name=turn.name,
            )
            for turn in body.turns
        ],
        tools=[Tool(name=tool.name, description=tool.description, parameters=tool.parameters) for tool in body.tools],
        tool_choice=_TOOL_CHOICES[body.tool_choice],
        tool_name=body.tool_name,
    )


def _response_format(schema: str) -> ResponseFormat:
    return ResponseFormat(json_schema=schema) if schema else ResponseFormat(json_object=True)


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


def _too_many_tokens(tokens: str, limit: str) -> ApiError:
    # The sentence that clients take apart; "maximum output" counts only where the window is held to.
    return ApiError(
        413,
        5021,
        f"The estimated number of input and maximum output tokens ({tokens}) exceeded this model context window limit "
        f"({limit}).",
    )


def _prompt_too_long(details: _Details) -> ApiError:
    metadata = details.info.metadata
    return _too_many_tokens(metadata.get("prompt_tokens", "?"), metadata.get("context_length", "?"))


def _no_room_for_reply(details: _Details) -> ApiError:
    metadata = details.info.metadata
    tokens = sum(int(metadata.get(key, "0")) for key in ("prompt_tokens", "max_tokens"))
    return _too_many_tokens(str(tokens), metadata.get("window", "?"))


def _capacity_exceeded() -> ApiError:
    return ApiError(429, 3040, "Capacity temporarily exceeded, please try again.")


def _unavailable() -> ApiError:
    return ApiError(503, 7009, "Upstream service unavailable")


_BY_REASON: dict[str, Callable[[_Details, str], ApiError]] = {
    "UNKNOWN_MODEL": lambda details, model: ApiError(400, 5007, f"No such model {model} or task"),
    "INVALID_FIELD": lambda details, model: _invalid_field(details),
    "PROMPT_TOO_LONG": lambda details, model: _prompt_too_long(details),
    "NO_ROOM_FOR_REPLY": lambda details, model: _no_room_for_reply(details),
    "CAPACITY_EXCEEDED": lambda details, model: _capacity_exceeded(),
    "RATE_LIMITED": lambda details, model: ApiError(429, 3021, "rate limiting: inference request per min rate reached"),
    "CLIENT_TOO_SLOW": lambda details, model: request_timeout(),
    "SERVER_STOPPING": lambda details, model: _unavailable(),
    "MODEL_NOT_READY": lambda details, model: _unavailable(),
    "GENERATION_FAILED": lambda details, model: ApiError(500, 3000, "The model failed while generating this reply."),
}


def _by_code(code: grpc.StatusCode) -> ApiError:
    # A refused token is the bridge's own, and no fault of the client.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED):
        return _unavailable()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return request_timeout()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # The server gives a reason when it is full; without one it is gRPC's own limit on the size of a message.
        return ApiError(413, 3006, "Request is too large")
    return internal_error()
