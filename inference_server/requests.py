"""The contract's requests to the engine's: defaults, ranges, limits. Every field is checked, and all wrong ones are named."""

import json
import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

from inference_server import tools as tool_forms
from inference_server.errors import FieldViolation, InvalidField
from inference_server.grammar import Constraint, GrammarError
from inference_server.prompt import Turn
from inference_server.sequence import GenerationRequest, SamplingParams, ToolCall
from inference_server.tools import Tool
from tailrace.v1 import inference_pb2 as pb

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from inference_server.hosting import HostedModel

_Scalar = Literal["temperature", "top_p", "top_k", "repetition_penalty", "frequency_penalty", "presence_penalty"]
_SCALARS: tuple[_Scalar, ...] = get_args(_Scalar)
_RANGES: dict[_Scalar, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
_RANGES_ABOVE_ZERO: dict[_Scalar, float] = {"top_p": 1.0, "repetition_penalty": 2.0}
_AT_LEAST_ONE: tuple[Literal["max_tokens", "top_k"], ...] = ("max_tokens", "top_k")
_MAX_STOP_STRINGS = 16
_MAX_STOP_LENGTH = 256
_MAX_ROLE_LENGTH = 64
_MAX_MODEL_LENGTH = 256
MAX_ACCOUNT_LENGTH = 256
_MAX_TOP_LOGPROBS = 20
_MAX_TOOLS = 128
_MAX_NAME_LENGTH = 256
_MAX_SCHEMA_BYTES = 2**20
# Of more, the first are told: a status travels in a header, and a request may hold a million wrong turns.
_MAX_VIOLATIONS = 16
# Seeds drawn here stay within what the REST interface can send back in.
_MAX_DRAWN_SEED = 9_999_999_999


def check(request: pb.RunRequest) -> None:
    """Raises InvalidField with every field that is wrong by itself, whatever the model."""
    violations = [
        *_input_violations(request),
        *_sampling_violations(request.sampling),
        *_format_violations(request),
    ]
    if request.HasField("logprobs") and request.logprobs.top > _MAX_TOP_LOGPROBS:
        violations.append(FieldViolation("logprobs.top", f"must be at most {_MAX_TOP_LOGPROBS}"))
    if request.HasField("time_limit") and _seconds(request) <= 0:
        violations.append(FieldViolation("time_limit", "must be above 0"))
    if len(request.account) > MAX_ACCOUNT_LENGTH:
        violations.append(FieldViolation("account", f"must have at most {MAX_ACCOUNT_LENGTH} characters"))
    if violations:
        raise InvalidField(*violations[:_MAX_VIOLATIONS])


def check_input(request: pb.CountTokensRequest) -> None:
    """Raises InvalidField if the prompt is missing or malformed."""
    if violations := _input_violations(request):
        raise InvalidField(*violations[:_MAX_VIOLATIONS])


def prompt_ids(request: pb.RunRequest | pb.CountTokensRequest, model: "HostedModel") -> list[int]:
    """Tokens of the prompt. Raises InvalidField if there are none. Slow for long prompts: call it off the event loop."""
    if request.WhichOneof("input") == "text":
        token_ids = model.prompts.encode_text(request.text)
    else:
        token_ids = model.prompts.encode_chat([_turn(turn) for turn in request.chat.turns], shown_tools(request.chat))
    if not token_ids:
        raise InvalidField(FieldViolation("input", "gives a prompt without any token"))
    if max(token_ids) >= model.engine.runner.vocab_size:
        raise InvalidField(FieldViolation("input", "holds a token that the tokenizer knows and the model does not"))
    return token_ids


def generation_request(
    request: pb.RunRequest, request_id: str, prompt: list[int], model: "HostedModel"
) -> GenerationRequest:
    """A checked request with its limits worked out. Raises PromptTooLong, NoRoomForReply, InvalidField."""
    sampling = request.sampling
    wanted = sampling.max_tokens if sampling.HasField("max_tokens") else None
    model.check_length(len(prompt), wanted if request.max_tokens_must_fit else None)
    return GenerationRequest(
        request_id=request_id,
        prompt_ids=prompt,
        sampling=_sampling_params(request),
        max_tokens=model.max_tokens(len(prompt), wanted),
        stop=tuple(sampling.stop),
        continues_prompt=request.WhichOneof("input") == "text",
        time_limit_seconds=_seconds(request) if request.HasField("time_limit") else None,
        account=request.account,
        reject_if_busy=request.reject_if_busy,
        constraint=_constraint(request, model),
    )


def callable_tools(request: pb.RunRequest) -> list[str]:
    """Names of the tools whose calls the reply may hold: none if it has another form."""
    return [] if request.HasField("response_format") else [tool.name for tool in shown_tools(request.chat)]


def shown_tools(chat: pb.Chat) -> list[Tool]:
    """The tools that the model may call."""
    if chat.tool_choice == pb.TOOL_CHOICE_NONE:
        return []
    return [Tool(tool.name, tool.description, json.loads(tool.parameters or "{}")) for tool in chat.tools]


def _turn(turn: pb.ChatTurn) -> Turn:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls)
    return Turn(turn.role, turn.content, calls, turn.tool_call_id, turn.name)


def _constraint(request: pb.RunRequest, model: "HostedModel") -> Constraint | None:
    """The grammar that the reply must follow. Raises InvalidField if it cannot be enforced."""
    field = "response_format.json_schema"
    try:
        match request.response_format.WhichOneof("form"):
            case "json_object":
                return model.grammars.json_object()
            case "json_schema":
                return model.grammars.json_schema(request.response_format.json_schema)
        if request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
            field = "chat.tools"
            tools = [tool for tool in shown_tools(request.chat) if request.chat.tool_name in ("", tool.name)]
            return model.grammars.lark(tool_forms.grammar(model.tool_format, tools, model.grammars.literal))
    except GrammarError as error:
        raise InvalidField(FieldViolation(field, str(error))) from None
    return None


def _sampling_params(request: pb.RunRequest) -> SamplingParams:
    sampling = request.sampling
    given = {name: getattr(sampling, name) for name in _SCALARS if sampling.HasField(name)}
    seed = sampling.seed if sampling.HasField("seed") else random.SystemRandom().randint(1, _MAX_DRAWN_SEED)
    return SamplingParams(seed=seed, logprobs=request.logprobs.top if request.HasField("logprobs") else None, **given)


def _input_violations(request: pb.RunRequest | pb.CountTokensRequest) -> list[FieldViolation]:
    violations = []
    if not 1 <= len(request.model) <= _MAX_MODEL_LENGTH:
        violations.append(FieldViolation("model", f"is required, and has at most {_MAX_MODEL_LENGTH} characters"))
    return violations + _prompt_violations(request)


def _prompt_violations(request: pb.RunRequest | pb.CountTokensRequest) -> list[FieldViolation]:
    match request.WhichOneof("input"):
        case "text":
            return [] if request.text else [FieldViolation("text", "must not be empty")]
        case "chat":
            return _turn_violations(request.chat)
        case _:
            return [FieldViolation("input", "is required: text or chat")]


def _turn_violations(chat: pb.Chat) -> list[FieldViolation]:
    if not chat.turns:
        return [FieldViolation("chat.turns", "must not be empty")]
    violations = [
        FieldViolation(f"chat.turns[{index}].role", f"must have 1 to {_MAX_ROLE_LENGTH} characters")
        for index, turn in enumerate(chat.turns)
        if not 1 <= len(turn.role) <= _MAX_ROLE_LENGTH
    ]
    for index, turn in enumerate(chat.turns):
        if turn.tool_calls or turn.tool_call_id or turn.name:
            violations += _call_violations(turn, f"chat.turns[{index}]")
    return [*violations, *_tool_violations(chat)]


def _call_violations(turn: pb.ChatTurn, path: str) -> Iterator[FieldViolation]:
    for name in ("tool_call_id", "name"):
        if len(getattr(turn, name)) > _MAX_NAME_LENGTH:
            yield FieldViolation(f"{path}.{name}", f"must have at most {_MAX_NAME_LENGTH} characters")
    if len(turn.tool_calls) > _MAX_TOOLS:
        yield FieldViolation(f"{path}.tool_calls", f"must have at most {_MAX_TOOLS} calls")
        return
    for index, call in enumerate(turn.tool_calls):
        if not 1 <= len(call.name) <= _MAX_NAME_LENGTH:
            yield FieldViolation(f"{path}.tool_calls[{index}].name", f"must have 1 to {_MAX_NAME_LENGTH} characters")
        if len(call.id) > _MAX_NAME_LENGTH:
            yield FieldViolation(f"{path}.tool_calls[{index}].id", f"must have at most {_MAX_NAME_LENGTH} characters")
        if not _is_object(call.arguments):
            yield FieldViolation(f"{path}.tool_calls[{index}].arguments", "must be a JSON object")


def _tool_violations(chat: pb.Chat) -> Iterator[FieldViolation]:
    names = [tool.name for tool in chat.tools]
    if len(names) > _MAX_TOOLS:
        yield FieldViolation("chat.tools", f"must have at most {_MAX_TOOLS} tools")
        return
    for index, tool in enumerate(chat.tools):
        path = f"chat.tools[{index}]"
        if not 1 <= len(tool.name) <= _MAX_NAME_LENGTH:
            yield FieldViolation(f"{path}.name", f"must have 1 to {_MAX_NAME_LENGTH} characters")
        elif names.index(tool.name) < index:
            yield FieldViolation(f"{path}.name", "is another tool's already")
        if tool.parameters and not _is_object(tool.parameters):
            yield FieldViolation(f"{path}.parameters", "must be a JSON Schema: an object")
    if chat.tool_choice == pb.TOOL_CHOICE_REQUIRED and not names:
        yield FieldViolation("chat.tool_choice", "needs tools")
    if chat.tool_name and chat.tool_choice != pb.TOOL_CHOICE_REQUIRED:
        yield FieldViolation("chat.tool_name", "needs tool_choice REQUIRED")
    elif chat.tool_name and chat.tool_name not in names:
        yield FieldViolation("chat.tool_name", "names none of the tools")


def _format_violations(request: pb.RunRequest) -> Iterator[FieldViolation]:
    if not request.HasField("response_format"):
        return
    if request.response_format.WhichOneof("form") is None:
        yield FieldViolation("response_format", "needs a form: json_object or json_schema")
    if len(request.response_format.json_schema) > _MAX_SCHEMA_BYTES:
        yield FieldViolation("response_format.json_schema", f"must have at most {_MAX_SCHEMA_BYTES} characters")
    if request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        yield FieldViolation("response_format", "does not go together with tool_choice REQUIRED")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _sampling_violations(sampling: pb.Sampling) -> list[FieldViolation]:
    violations = []
    for name, (low, high) in _RANGES.items():
        if sampling.HasField(name) and not low <= getattr(sampling, name) <= high:  # NaN is in no range
            violations.append(FieldViolation(f"sampling.{name}", f"must be {low:g} to {high:g}"))
    for name, highest in _RANGES_ABOVE_ZERO.items():
        if sampling.HasField(name) and not 0.0 < getattr(sampling, name) <= highest:
            violations.append(FieldViolation(f"sampling.{name}", f"must be above 0, at most {highest:g}"))
    for count in _AT_LEAST_ONE:
        if sampling.HasField(count) and getattr(sampling, count) < 1:
            violations.append(FieldViolation(f"sampling.{count}", "must be at least 1"))
    if len(sampling.stop) > _MAX_STOP_STRINGS:
        violations.append(FieldViolation("sampling.stop", f"must have at most {_MAX_STOP_STRINGS} strings"))
    if any(not 1 <= len(stop) <= _MAX_STOP_LENGTH for stop in sampling.stop):
        violations.append(FieldViolation("sampling.stop", f"must be strings of 1 to {_MAX_STOP_LENGTH} characters"))
    return violations


def _seconds(request: pb.RunRequest) -> float:
    seconds = request.time_limit.seconds + request.time_limit.nanos / 1e9
    return seconds if math.isfinite(seconds) else 0.0
