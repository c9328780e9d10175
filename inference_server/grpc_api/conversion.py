"""The contract's requests to the engine's: prompts, defaults, limits of the model."""

import json
import random
from typing import TYPE_CHECKING

from inference_server.engine.sequence import GenerationRequest, SamplingParams, ToolCall
from inference_server.errors import FieldViolation, InvalidField
from inference_server.grpc_api.validation import seconds
from inference_server.text import tool_formats as tool_forms
from inference_server.text.grammar import Constraint, GrammarError
from inference_server.text.prompt_encoder import Turn
from inference_server.text.tool_formats import Tool
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.request_fields import SAMPLING_FIELDS

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from inference_server.serving.hosted_model import HostedModel

# Sampling parameters that are passed to the engine as they are.
_ENGINE_FIELDS = {field.name for field in SAMPLING_FIELDS if field.is_engine_default}
# Seeds drawn here stay within what the REST interface can send back in.
_MAX_DRAWN_SEED = 9_999_999_999


def prompt_ids(request: pb.RunRequest | pb.CountTokensRequest, model: "HostedModel") -> list[int]:
    """Tokens of the prompt. Raises InvalidField if there are none. Slow for long prompts: call it off the event loop."""
    if request.WhichOneof("input") == "text":
        token_ids = model.prompts.encode_text(request.text)
    else:
        token_ids = model.prompts.encode_chat([_turn(turn) for turn in request.chat.turns], shown_tools(request.chat))
    if not token_ids:
        raise InvalidField(FieldViolation("input", "gives a prompt without any token"))
    if max(token_ids) >= model.engine.vocab_size:
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
        time_limit_seconds=seconds(request) if request.HasField("time_limit") else None,
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
    given = {field.name: value for field, value in sampling.ListFields() if field.name in _ENGINE_FIELDS}
    seed = sampling.seed if sampling.HasField("seed") else random.SystemRandom().randint(1, _MAX_DRAWN_SEED)
    return SamplingParams(seed=seed, logprobs=request.logprobs.top if request.HasField("logprobs") else None, **given)
