"""The contract's requests to the engine's: defaults, ranges, limits. Every field is checked, and all wrong ones are named."""

import math
import random
from typing import TYPE_CHECKING, Literal, get_args

from inference_server.errors import FieldViolation, InvalidField
from inference_server.prompt import Turn
from inference_server.sequence import GenerationRequest, SamplingParams
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
_MAX_ACCOUNT_LENGTH = 256
_MAX_TOP_LOGPROBS = 20
# Of more, the first are told: a status travels in a header, and a request may hold a million wrong turns.
_MAX_VIOLATIONS = 16
# Seeds drawn here stay within what the REST interface can send back in.
_MAX_DRAWN_SEED = 9_999_999_999


def check(request: pb.RunRequest) -> None:
    """Raises InvalidField with every field that is wrong by itself, whatever the model."""
    violations = [*_input_violations(request), *_sampling_violations(request.sampling)]
    if request.HasField("logprobs") and request.logprobs.top > _MAX_TOP_LOGPROBS:
        violations.append(FieldViolation("logprobs.top", f"must be at most {_MAX_TOP_LOGPROBS}"))
    if request.HasField("time_limit") and _seconds(request) <= 0:
        violations.append(FieldViolation("time_limit", "must be above 0"))
    if len(request.account) > _MAX_ACCOUNT_LENGTH:
        violations.append(FieldViolation("account", f"must have at most {_MAX_ACCOUNT_LENGTH} characters"))
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
        token_ids = model.prompts.encode_chat([Turn(turn.role, turn.content) for turn in request.chat.turns])
    if not token_ids:
        raise InvalidField(FieldViolation("input", "gives a prompt without any token"))
    if max(token_ids) >= model.engine.runner.vocab_size:
        raise InvalidField(FieldViolation("input", "holds a token that the tokenizer knows and the model does not"))
    return token_ids


def generation_request(
    request: pb.RunRequest, request_id: str, prompt: list[int], model: "HostedModel"
) -> GenerationRequest:
    """A checked request with its limits worked out. Raises PromptTooLong."""
    model.check_length(len(prompt))
    sampling = request.sampling
    wanted = sampling.max_tokens if sampling.HasField("max_tokens") else None
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
    )


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
    return [
        FieldViolation(f"chat.turns[{index}].role", f"must have 1 to {_MAX_ROLE_LENGTH} characters")
        for index, turn in enumerate(chat.turns)
        if not 1 <= len(turn.role) <= _MAX_ROLE_LENGTH
    ]


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
