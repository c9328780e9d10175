"""Validates the parts of requests that do not depend on the model: ranges, lengths and counts."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from inference_server.errors import FieldViolation, InvalidField
from inference_server.text.chat.arguments import EFFORTS, is_reserved
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.request_fields import (
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_NAME_LENGTH,
    MAX_ROLE_LENGTH,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    SAMPLING_FIELDS,
)

_MAX_SCHEMA_BYTES = 2**20
_MAX_ARGUMENTS_LENGTH = 2**16
# Deepest nesting of a tool call's arguments in the conversation. Chat templates walk them with recursive functions.
_MAX_ARGUMENTS_DEPTH = 100
# Longest list of violations in an error. Errors are sent in headers, and a request may have thousands of invalid turns.
_MAX_VIOLATIONS = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that the settings define.

    Attributes:
        max_messages: Largest number of turns in a conversation.
        max_schema_depth: Deepest nesting of arrays and objects in a JSON Schema or in template arguments.
    """

    max_messages: int
    max_schema_depth: int


def check(request: pb.RunRequest, limits: Limits) -> None:
    """Validate a request of Run.

    Raises:
        InvalidField: The error lists the first 16 invalid fields.
    """
    violations = [
        *_input_violations(request, limits),
        *_sampling_violations(request.sampling),
        *_format_violations(request, limits),
    ]
    if request.HasField("logprobs") and request.logprobs.top > MAX_TOP_LOGPROBS:
        violations.append(FieldViolation("logprobs.top", f"must be at most {MAX_TOP_LOGPROBS}"))
    if request.HasField("time_limit") and seconds(request) <= 0:
        violations.append(FieldViolation("time_limit", "must be above 0"))
    if request.priority not in pb.Priority.values():
        violations.append(FieldViolation("priority", "must be INTERACTIVE or BATCH"))
    if len(request.account) > MAX_NAME_LENGTH:
        violations.append(FieldViolation("account", f"must have at most {MAX_NAME_LENGTH} characters"))
    if len(request.adapter) > MAX_NAME_LENGTH:
        violations.append(FieldViolation("adapter", f"must have at most {MAX_NAME_LENGTH} characters"))
    if violations:
        raise InvalidField(*violations[:_MAX_VIOLATIONS])


def check_input(request: pb.CountTokensRequest, limits: Limits) -> None:
    """Validate a request of CountTokens: the model's name and the prompt.

    Raises:
        InvalidField: The error lists the first 16 invalid fields.
    """
    if violations := _input_violations(request, limits):
        raise InvalidField(*violations[:_MAX_VIOLATIONS])


def _input_violations(request: pb.RunRequest | pb.CountTokensRequest, limits: Limits) -> list[FieldViolation]:
    violations = []
    if not 1 <= len(request.model) <= MAX_NAME_LENGTH:
        violations.append(FieldViolation("model", f"is required, and has at most {MAX_NAME_LENGTH} characters"))
    return violations + _prompt_violations(request, limits)


def _prompt_violations(request: pb.RunRequest | pb.CountTokensRequest, limits: Limits) -> list[FieldViolation]:
    match request.WhichOneof("input"):
        case "text":
            return [] if request.text else [FieldViolation("text", "must not be empty")]
        case "chat":
            return _turn_violations(request.chat, limits)
        case _:
            return [FieldViolation("input", "is required: text or chat")]


def _turn_violations(chat: pb.Chat, limits: Limits) -> list[FieldViolation]:
    if not chat.turns:
        return [FieldViolation("chat.turns", "must not be empty")]
    if len(chat.turns) > limits.max_messages:
        return [FieldViolation("chat.turns", f"must have at most {limits.max_messages} turns")]
    violations = [
        FieldViolation(f"chat.turns[{index}].role", f"must have 1 to {MAX_ROLE_LENGTH} characters")
        for index, turn in enumerate(chat.turns)
        if not 1 <= len(turn.role) <= MAX_ROLE_LENGTH
    ]
    for index, turn in enumerate(chat.turns):
        if turn.tool_calls or turn.tool_call_id or turn.name:
            violations += _call_violations(turn, f"chat.turns[{index}]")
    return [*violations, *_tool_violations(chat, limits), *_template_violations(chat, limits)]


def _template_violations(chat: pb.Chat, limits: Limits) -> Iterator[FieldViolation]:
    path = "chat.template_arguments"
    if len(chat.template_arguments) > _MAX_ARGUMENTS_LENGTH:
        yield FieldViolation(path, f"must have at most {_MAX_ARGUMENTS_LENGTH} characters")
    elif chat.template_arguments and not _is_object(chat.template_arguments):
        yield FieldViolation(path, "must be a JSON object")
    elif _is_too_deep(chat.template_arguments, limits.max_schema_depth):
        yield FieldViolation(path, f"must be nested at most {limits.max_schema_depth} deep")
    elif chat.template_arguments:
        for name in filter(is_reserved, json.loads(chat.template_arguments)):
            yield FieldViolation(path, f"must not set {name[:MAX_NAME_LENGTH]!r}, which is not a variable for clients")
    if chat.reasoning_effort and chat.reasoning_effort not in EFFORTS:
        yield FieldViolation("chat.reasoning_effort", f"must be one of {', '.join(EFFORTS)}")
    if chat.continue_final_turn and chat.omit_generation_prompt:
        yield FieldViolation("chat.omit_generation_prompt", "must not be combined with continue_final_turn")


def _call_violations(turn: pb.ChatTurn, path: str) -> Iterator[FieldViolation]:
    for name in ("tool_call_id", "name"):
        if len(getattr(turn, name)) > MAX_NAME_LENGTH:
            yield FieldViolation(f"{path}.{name}", f"must have at most {MAX_NAME_LENGTH} characters")
    if len(turn.tool_calls) > MAX_TOOLS:
        yield FieldViolation(f"{path}.tool_calls", f"must have at most {MAX_TOOLS} calls")
        return
    for index, call in enumerate(turn.tool_calls):
        if not 1 <= len(call.name) <= MAX_NAME_LENGTH:
            yield FieldViolation(f"{path}.tool_calls[{index}].name", f"must have 1 to {MAX_NAME_LENGTH} characters")
        if len(call.id) > MAX_NAME_LENGTH:
            yield FieldViolation(f"{path}.tool_calls[{index}].id", f"must have at most {MAX_NAME_LENGTH} characters")
        if not _is_object(call.arguments):
            yield FieldViolation(f"{path}.tool_calls[{index}].arguments", "must be a JSON object")
        elif _is_too_deep(call.arguments, _MAX_ARGUMENTS_DEPTH):
            reason = f"must be nested at most {_MAX_ARGUMENTS_DEPTH} deep"
            yield FieldViolation(f"{path}.tool_calls[{index}].arguments", reason)


def _tool_violations(chat: pb.Chat, limits: Limits) -> Iterator[FieldViolation]:
    names = [tool.name for tool in chat.tools]
    if len(names) > MAX_TOOLS:
        yield FieldViolation("chat.tools", f"must have at most {MAX_TOOLS} tools")
        return
    for index, tool in enumerate(chat.tools):
        path = f"chat.tools[{index}]"
        if not 1 <= len(tool.name) <= MAX_NAME_LENGTH:
            yield FieldViolation(f"{path}.name", f"must have 1 to {MAX_NAME_LENGTH} characters")
        elif names.index(tool.name) < index:
            yield FieldViolation(f"{path}.name", "must be unique among the tools")
        if tool.parameters and not _is_object(tool.parameters):
            yield FieldViolation(f"{path}.parameters", "must be a JSON Schema: an object")
        elif _is_too_deep(tool.parameters, limits.max_schema_depth):
            yield FieldViolation(f"{path}.parameters", f"must be nested at most {limits.max_schema_depth} deep")
    if chat.tool_choice == pb.TOOL_CHOICE_REQUIRED and not names:
        yield FieldViolation("chat.tool_choice", "needs tools")
    if chat.tool_name and chat.tool_choice != pb.TOOL_CHOICE_REQUIRED:
        yield FieldViolation("chat.tool_name", "needs tool_choice REQUIRED")
    elif chat.tool_name and chat.tool_name not in names:
        yield FieldViolation("chat.tool_name", "must be the name of one of the tools")
    elif chat.tool_name and chat.allowed_tools and chat.tool_name not in chat.allowed_tools:
        yield FieldViolation("chat.tool_name", "must be one of the allowed tools")
    if len(chat.allowed_tools) > MAX_TOOLS:
        yield FieldViolation("chat.allowed_tools", f"must have at most {MAX_TOOLS} names")
        return
    for index, name in enumerate(chat.allowed_tools):
        if name not in names:
            yield FieldViolation(f"chat.allowed_tools[{index}]", "must be the name of one of the tools")


def _format_violations(request: pb.RunRequest, limits: Limits) -> Iterator[FieldViolation]:
    if not request.HasField("response_format"):
        return
    if request.response_format.WhichOneof("form") is None:
        yield FieldViolation("response_format", "needs a form: json_object or json_schema")
    if len(request.response_format.json_schema) > _MAX_SCHEMA_BYTES:
        yield FieldViolation("response_format.json_schema", f"must have at most {_MAX_SCHEMA_BYTES} characters")
    elif _is_too_deep(request.response_format.json_schema, limits.max_schema_depth):
        most = limits.max_schema_depth
        yield FieldViolation("response_format.json_schema", f"must be nested at most {most} deep")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_too_deep(text: str, most: int) -> bool:
    """Return True if a JSON text nests arrays and objects deeper than `most`. Returns False for invalid JSON."""
    try:
        level = [json.loads(text)] if text else []
    except RecursionError:
        return True
    except ValueError:
        return False
    for _ in range(most):
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
    return any(isinstance(item, dict | list) for item in level)


def _children(item: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


def _sampling_violations(sampling: pb.Sampling) -> list[FieldViolation]:
    violations = []
    given = {descriptor.name: value for descriptor, value in sampling.ListFields()}
    for field in SAMPLING_FIELDS:
        if field.name in given and given[field.name] not in field.grpc:
            violations.append(FieldViolation(f"sampling.{field.name}", f"must be {field.grpc}"))
    if len(sampling.stop) > MAX_STOP_STRINGS:
        violations.append(FieldViolation("sampling.stop", f"must have at most {MAX_STOP_STRINGS} strings"))
    if any(not 1 <= len(stop) <= MAX_STOP_LENGTH for stop in sampling.stop):
        violations.append(FieldViolation("sampling.stop", f"must be strings of 1 to {MAX_STOP_LENGTH} characters"))
    return violations + _bias_violations(sampling)


def _bias_violations(sampling: pb.Sampling) -> list[FieldViolation]:
    if len(sampling.logit_bias) > MAX_BIASED_TOKENS:
        return [FieldViolation("sampling.logit_bias", f"must have at most {MAX_BIASED_TOKENS} tokens")]
    return [
        FieldViolation(f"sampling.logit_bias[{token_id}]", f"must be -{MAX_BIAS} to {MAX_BIAS}")
        for token_id, value in sorted(sampling.logit_bias.items())
        if not -MAX_BIAS <= value <= MAX_BIAS
    ]


def seconds(request: pb.RunRequest) -> float:
    """Return the request's time limit in seconds, or 0 if it has none."""
    seconds = request.time_limit.seconds + request.time_limit.nanos / 1e9
    return seconds if math.isfinite(seconds) else 0.0
