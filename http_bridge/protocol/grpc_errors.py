"""Converts gRPC errors of the inference server to the errors that clients receive.

Does not use connections and does not depend on the JSON format. ErrorInfo's reason determines the result, or the status
code if the reason is missing or unknown. The error's text never determines it.
"""

import math
import re
from collections.abc import Callable, Sequence

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from http_bridge.errors import ApiError, internal_error
from http_bridge.protocol.validation.documents import bad_field, bad_fields, bad_input
from http_bridge.protocol.validation.problems import Problem
from tailrace_shared.catalogue.short_names import nearest_name
from tailrace_shared.catalogue.workers_ai import how_to_serve, removed_on

ERROR_DOMAIN = "tailrace"
_DETAILS_KEY = "grpc-status-details-bin"
_LOADING_RETRY_SECONDS = 5
_MAX_NAMES = 20  # largest number of models or adapters that one error lists
# Field names that differ between inference.proto and a body; the first prefix that matches is replaced.
_BODY_NAMES = (
    ("sampling.", ""),
    ("chat.turns", "messages"),
    ("chat.tools", "tools"),
    ("chat.tool_", "tool_"),
    ("chat.allowed_tools", "tool_choice.allowed_tools.tools"),
    ("chat.parallel_tool_calls", "parallel_tool_calls"),
    ("chat.continue_final_turn", "continue_final_message"),
    ("chat.omit_generation_prompt", "add_generation_prompt"),
    ("chat.template_arguments", "chat_template_kwargs"),
    ("chat.reasoning_effort", "reasoning_effort"),
    ("chat", "messages"),
    ("texts", "text"),
    ("text", "prompt"),
    ("response_format", "response_format"),
)


def rpc_api_error(error: grpc.aio.AioRpcError, *, model: str) -> ApiError:
    """Return the client's error for a failed call. `model`: the model of the request, for the message."""
    details = _Details(error)
    convert = _BY_REASON.get(details.reason)
    api_error = convert(details, model) if convert else _by_code(error.code())
    if details.retry_after_seconds is not None:
        api_error.retry_after_seconds = details.retry_after_seconds
    return api_error


def unknown_model(model: str, names: Sequence[str] = ()) -> ApiError:
    """Return the error for a model that no server hosts: 400/5007, or 400/5028 for a model that Cloudflare removed.

    For a model of Workers AI's catalogue, the message contains the command that serves it.

    Args:
        model: The requested name.
        names: The models of the servers.
    """
    near = nearest_name(model, names)
    meant = f"did you mean {near}?" if near else ""
    step = how_to_serve(model) or ""
    # After the question a sentence begins.
    the = "The" if meant and not step else "the"
    listed = f"{the} models here are {', '.join(names[:_MAX_NAMES])}" if names else ""
    more = "; ".join(each for each in (step, listed) if each)
    more = " ".join(each for each in (meant, more) if each)
    if day := removed_on(model):
        return removed_model(day, f"No server here hosts it: {more}.")
    reasons = f": {more}" if more else ""
    return ApiError(
        400,
        5007,
        f"No such model {model} or task{reasons}",
        openai_message=f"The model '{model}' does not exist{' here' if step else ''}{reasons}",
        param="model",
        is_unknown_model=True,
        plain=f"There is no model {model}{reasons}.",
    )


def unknown_adapter(model: str, names: Sequence[str]) -> ApiError:
    """Return the error for an unknown LoRA adapter: 405/5005 if the model has no adapters, otherwise 400/5006.

    `names`: the model's adapters.
    """
    if not names:
        return ApiError(405, 5005, f"The model {model} does not support LoRa inference", param="lora")
    listed = ", ".join(names[:_MAX_NAMES])
    return bad_field("/lora", f"is not an adapter of the model {model}: its adapters are {listed}")


def removed_model(day: str, more: str = "") -> ApiError:
    """Return the error for a model that Cloudflare removed: 400/5028.

    Args:
        day: The day of the removal, YYYY-MM-DD.
        more: A sentence to add for a model that no server hosts. Empty: a server hosts the model, but the profile
            refuses it.
    """
    sentence = f"This model was deprecated on {day}. Please use an alternative model."
    return ApiError(400, 5028, f"{sentence} {more}".rstrip(), param="model", is_unknown_model=bool(more))


def request_timeout() -> ApiError:
    """Return the error for a request that took too long: 408/3007."""
    return ApiError(408, 3007, "Request timeout")


class _Details:
    """The google.rpc details of a failed call; empty if the call has none or they cannot be decoded."""

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
    violations = [
        Problem(path, f"'{path}' {wrong.description}")
        for wrong in details.bad_request.field_violations
        for path in (_body_path(wrong.field),)
    ]
    return bad_fields(violations) if violations else bad_input("the model server refused a field")


# A dot or an index, or a name in quotes, which may contain both: `parameters["a.b"]`.
_STEP = re.compile(r'\["(?:[^"\\]|\\.)*"\]|\[(\d+)\]|\.')


def _body_path(field: str) -> str:
    """Return the path in a body for a field of inference.proto, such as /messages/0/role for chat.turns[0].role."""
    path = field
    for contract_name, body_name in _BODY_NAMES:
        if path.startswith(contract_name):
            path = body_name + path.removeprefix(contract_name)
            break
    return "/" + _STEP.sub(lambda step: "/" if step[0] == "." else f"/{step[1]}" if step[1] else step[0], path)


def _too_many_tokens(tokens: str, limit: str, *, more: str, openai: str) -> ApiError:
    # Clients parse both messages and shorten the conversation.
    return ApiError(
        413,
        5021,
        f"The estimated number of input and maximum output tokens ({tokens}) exceeded this model context window limit "
        f"({limit}). {more}",
        openai_message=f"This model's maximum context length is {limit} tokens. However, {openai}. Please reduce the length "
        "of the messages.",
        param="messages",
    )


def _prompt_too_long(details: _Details) -> ApiError:
    metadata = details.info.metadata
    tokens = metadata.get("prompt_tokens", "?")
    return _too_many_tokens(
        tokens,
        metadata.get("context_length", "?"),
        more=f"The prompt alone has {tokens} tokens.",
        openai=f"the prompt has {tokens} tokens",
    )


def _no_room_for_reply(details: _Details) -> ApiError:
    metadata = details.info.metadata
    tokens = sum(int(metadata.get(key, "0")) for key in ("prompt_tokens", "max_tokens"))
    prompt, reply = (metadata.get(key, "?") for key in ("prompt_tokens", "max_tokens"))
    return _too_many_tokens(
        str(tokens),
        metadata.get("window", "?"),
        more=f"{prompt} are in the prompt, and max_tokens is {reply}.",
        openai=f"the request has {tokens} tokens: {prompt} in the prompt and {reply} in the completion (max_tokens)",
    )


def _wrong_task(model: str) -> ApiError:
    sentence = f"No such model {model} or task: the model exists, and its task is another one"
    return ApiError(400, 5007, sentence, openai_message=f"The model '{model}' has another task", param="model")


def _unknown_adapter(details: _Details, model: str) -> ApiError:
    names = details.info.metadata.get("adapters", "")
    return unknown_adapter(model, names.split("\n") if names else ())


def _not_recorded(details: _Details) -> ApiError:
    found = details.info.metadata
    where = "it has no recordings of such requests"
    if field := found.get("field"):
        where = (
            f"'{_body_path(field)}' is {found.get('requested', '?')}, and {found.get('recorded', '?')} in the nearest "
            f"recording {found.get('nearest', '?')}"
        )
    folder, command = found.get("folder", "?"), found.get("command", "?")
    # 404, because SDKs repeat requests after 409, 429 and every status from 500.
    return ApiError(
        404,
        5098,
        f"No recording of this request in {folder}: {where}. To record it, send it to a server with "
        f"TAILRACE_RECORDINGS_MODE=auto, or to this one: {command}",
    )


def _capacity_exceeded() -> ApiError:
    return ApiError(429, 3040, "Capacity temporarily exceeded, please try again.")


def _unavailable() -> ApiError:
    return ApiError(503, 7009, "Upstream service unavailable")


def _not_ready(model: str) -> ApiError:
    subject = f"The model {model} is not ready: it is" if model else "The models are not ready: the server is"
    sentence = f"{subject} still loading or does not respond. Please try again in a few seconds."
    return ApiError(503, 7009, sentence, retry_after_seconds=_LOADING_RETRY_SECONDS)


_BY_REASON: dict[str, Callable[[_Details, str], ApiError]] = {
    "UNKNOWN_MODEL": lambda details, model: unknown_model(model),
    "WRONG_TASK": lambda details, model: _wrong_task(model),
    "UNKNOWN_ADAPTER": _unknown_adapter,
    "INVALID_FIELD": lambda details, model: _invalid_field(details),
    "PROMPT_TOO_LONG": lambda details, model: _prompt_too_long(details),
    "NO_ROOM_FOR_REPLY": lambda details, model: _no_room_for_reply(details),
    "CAPACITY_EXCEEDED": lambda details, model: _capacity_exceeded(),
    "RATE_LIMITED": lambda details, model: ApiError(429, 3021, "rate limiting: inference request per min rate reached"),
    "CLIENT_TOO_SLOW": lambda details, model: request_timeout(),
    "SERVER_STOPPING": lambda details, model: _unavailable(),
    "MODEL_NOT_READY": lambda details, model: _not_ready(model),
    "NOT_RECORDED": lambda details, model: _not_recorded(details),
    "GENERATION_FAILED": lambda details, model: ApiError(500, 3000, "The model failed while generating this reply."),
}


def _by_code(code: grpc.StatusCode) -> ApiError:
    # UNAUTHENTICATED refers to the bridge's own token. The client did not cause the error.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED):
        return _unavailable()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return request_timeout()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # A server without capacity sends a reason. Without a reason, the message exceeded gRPC's own size limit.
        return ApiError(413, 3006, "Request is too large")
    return internal_error()
