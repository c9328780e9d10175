"""Converts requests of inference.proto to the engine's requests, and the engine's events to responses."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inference_server.errors import FieldViolation, InvalidField
from inference_server.generation import (
    Candidate,
    Completed,
    Constraint,
    Delta,
    Event,
    FinishReason,
    GenerationRequest,
    Started,
    TokenLogprob,
    ToolCall,
)
from inference_server.grpc_api.sampling import sampling_defaults, sampling_params, with_defaults
from inference_server.grpc_api.status import duration
from inference_server.grpc_api.validation import seconds
from inference_server.text.chat.arguments import parsed
from inference_server.text.chat.prompts import ChatOptions
from inference_server.text.chat.turns import Turn
from inference_server.text.grammar import GrammarError, parsed_schema
from inference_server.text.prompt_encoder import Prompt
from inference_server.text.reasoning.formats import ThoughtState
from inference_server.text.schema_faults import located
from inference_server.text.tool_calls import Place
from inference_server.text.tool_constraint import calls_constraint
from inference_server.text.tool_formats import Tool
from inference_server.text.tools.call_grammar import ReplyForm
from tailrace.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from inference_server.serving.hosted_model import HostedModel

FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}


def encoded_prompt(request: pb.RunRequest | pb.CountTokensRequest, model: "HostedModel") -> Prompt:
    """Return the token ids of the prompt, and the state of the model's thoughts at the end of the prompt.

    Tokenising a megabyte of text takes about a second, so this must not run on the event loop.

    Raises:
        InvalidField: The prompt has no tokens, or a token id outside the model's vocabulary, or the chat template
            rejects the conversation.
    """
    if request.WhichOneof("input") == "text":
        prompt = Prompt(model.prompts.encode_text(request.text), "none")
    else:
        turns = [_turn(turn) for turn in request.chat.turns]
        prompt = model.prompts.encode_conversation(turns, shown_tools(request.chat), _options(request.chat))
    token_ids = prompt.token_ids
    if not token_ids:
        raise InvalidField(FieldViolation("input", "must give a prompt with at least one token"))
    if max(token_ids) >= model.engine.vocab_size:
        raise InvalidField(FieldViolation("input", "contains a token that is in the tokenizer but not in the model"))
    return prompt


def _options(chat: pb.Chat) -> ChatOptions:
    return ChatOptions(
        arguments=parsed(chat.template_arguments),
        effort=chat.reasoning_effort,
        continue_final_turn=chat.continue_final_turn,
        omit_generation_prompt=chat.omit_generation_prompt,
    )


def generation_request(
    request: pb.RunRequest, request_id: str, prompt: Prompt, model: "HostedModel", *, has_fixed_seed: bool = False
) -> GenerationRequest:
    """Return a request for the engine, with the model's limits applied.

    Args:
        request: A request that has passed validation.check.
        request_id: Id for logs, traces and the reply.
        prompt: The request's encoded prompt.
        model: The requested model.
        has_fixed_seed: True if a request without a seed gets DETERMINISTIC_SEED instead of a drawn one.

    Raises:
        PromptTooLong: The prompt is longer than the model's context length.
        NoRoomForReply: The request requires that prompt and max_tokens fit into the window, and they do not.
        UnknownAdapter: The model has no adapter with the requested name.
        InvalidField: The reply's grammar cannot be enforced, or `logit_bias` has a token id outside the vocabulary.
    """
    must_fit = request.max_tokens_must_fit and request.sampling.HasField("max_tokens")
    num_tokens = len(prompt.token_ids)
    model.check_length(num_tokens, request.sampling.max_tokens if must_fit else None)
    constraint = _constraint(request, model, prompt.thoughts)
    sampling = with_defaults(request, model, is_constrained=constraint is not None)
    return GenerationRequest(
        request_id=request_id,
        prompt_ids=prompt.token_ids,
        sampling=sampling_params(sampling, request, model.engine.vocab_size, has_fixed_seed=has_fixed_seed),
        max_tokens=model.max_tokens(num_tokens, sampling.max_tokens if sampling.HasField("max_tokens") else None),
        stop=tuple(sampling.stop),
        continues_prompt=request.WhichOneof("input") == "text" or request.chat.continue_final_turn,
        time_limit_seconds=seconds(request) if request.HasField("time_limit") else None,
        account=request.account,
        reject_if_busy=request.reject_if_busy,
        is_batch=request.priority == pb.PRIORITY_BATCH,
        constraint=constraint,
        adapter=model.adapter(request.adapter),
    )


def demands_form(request: pb.RunRequest) -> bool:
    """Return True if the request demands a form of the reply that a grammar enforces. Does not need the model."""
    tools = callable_tools(request)
    return request.HasField("response_format") or bool(tools) and _reply_form(request.chat, tools, None) is not None


def callable_tools(request: pb.RunRequest) -> list[Tool]:
    """Return the tools that the reply may call: the one that the request names, else the allowed ones, else all.

    The tool choice NONE allows no calls.
    """
    chat = request.chat
    names = {chat.tool_name} if chat.tool_name else set(chat.allowed_tools)
    return [tool for tool in shown_tools(chat) if not names or tool.name in names]


def call_place(request: pb.RunRequest) -> Place:
    """Return the place of tool calls in the reply, which depends on the tool choice and the response format."""
    if request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        return "only"
    return "beginning" if request.HasField("response_format") else "anywhere"


def shown_tools(chat: pb.Chat) -> list[Tool]:
    """Return the tools that the prompt describes: none for the tool choice NONE."""
    if chat.tool_choice == pb.TOOL_CHOICE_NONE:
        return []
    return [Tool(tool.name, tool.description, json.loads(tool.parameters or "{}")) for tool in chat.tools]


def _turn(turn: pb.ChatTurn) -> Turn:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls)
    return Turn(turn.role, turn.content, calls, turn.tool_call_id, turn.name, turn.reasoning)


def _constraint(request: pb.RunRequest, model: "HostedModel", thoughts: ThoughtState) -> Constraint | None:
    """Return the constraint on the reply, including its thoughts, or None.

    Raises:
        InvalidField: The constraint cannot be enforced.
    """
    constraint = _reply_constraint(request, model)
    return None if constraint is None else model.constrain(constraint, thoughts)


def _reply_constraint(request: pb.RunRequest, model: "HostedModel") -> Constraint | None:
    """Return the constraint on the reply without its thoughts, or None.

    Raises:
        InvalidField: The constraint cannot be enforced.
    """
    schema, tools = None, callable_tools(request)
    try:
        schema = _document_schema(request)
        form = _reply_form(request.chat, tools, schema) if tools else None
        if form is not None:
            return calls_constraint(model.grammars, model.tool_format, form)
        return None if schema is None else model.grammars.json_schema(schema)
    except GrammarError as error:
        raise InvalidField(_grammar_violation(error, request, schema), is_transient=error.is_transient) from None


def _grammar_violation(error: GrammarError, request: pb.RunRequest, schema: dict[str, Any] | None) -> FieldViolation:
    """Return the violation of the field whose schema cannot be enforced, with the place in the schema if known."""
    if schema is not None and (reason := located(error.cause, schema)):
        return FieldViolation("response_format.json_schema", reason)
    for index, tool in enumerate(request.chat.tools):
        if reason := located(error.cause, json.loads(tool.parameters or "{}")):
            return FieldViolation(f"chat.tools[{index}].parameters", reason)
    has_format = request.HasField("response_format")
    return FieldViolation("response_format.json_schema" if has_format else "chat.tools", str(error))


def _document_schema(request: pb.RunRequest) -> dict[str, Any] | None:
    """Return the JSON Schema that the reply must match, or None. Raises GrammarError if the given one is invalid."""
    match request.response_format.WhichOneof("form"):
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            return parsed_schema(request.response_format.json_schema)
    return None


def _reply_form(chat: pb.Chat, tools: list[Tool], schema: dict[str, Any] | None) -> ReplyForm | None:
    """Return the form that the request demands of a reply that may call `tools`, or None if it demands none."""
    if chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        # A small model that must write calls often repeats them until the reply reaches max_tokens. Several calls are
        # therefore allowed only if the client sets parallel_tool_calls.
        return ReplyForm(tools=tools, is_parallel=chat.parallel_tool_calls and not chat.tool_name)
    is_parallel = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True
    if schema is not None:
        return ReplyForm(tools=tools, is_parallel=is_parallel, beside="document", document=schema)
    if is_parallel and len(tools) == len(chat.tools):
        return None
    return ReplyForm(tools=tools, is_parallel=is_parallel, beside="text")


def response(
    event: Event, request: pb.RunRequest, request_id: str, token_bytes: Callable[[int], bytes]
) -> pb.RunResponse:
    """Convert one event of a reply to its message.

    Args:
        event: The event.
        request: The request that the event belongs to.
        request_id: Id that the start event contains.
        token_bytes: Returns the bytes of a token, for log probabilities.
    """
    match event:
        case Started():
            return pb.RunResponse(
                started=pb.Started(
                    request_id=request_id,
                    model=request.model,
                    prompt_tokens=event.prompt_tokens,
                    seed=event.seed,
                )
            )
        case Delta():
            # This runs for every token. Filling the message in place takes a third of the time that constructors take.
            response = pb.RunResponse()
            delta = response.delta
            delta.text = event.text
            delta.tokens = event.num_tokens
            if event.reasoning:
                delta.reasoning = event.reasoning
            if event.tool_calls:
                delta.tool_calls.extend(
                    pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in event.tool_calls
                )
            if event.logprobs:
                delta.logprobs.extend(_token_logprob(logprob, token_bytes) for logprob in event.logprobs)
            return response
        case Completed():
            return pb.RunResponse(completed=_completed(event))
    raise TypeError(f"{event} is not an event of a reply")


def _completed(event: Completed) -> pb.Completed:
    return pb.Completed(
        finish_reason=FINISH_REASONS[event.finish_reason],
        stop_string=event.stop_string,
        usage=pb.Usage(
            prompt_tokens=event.usage.prompt_tokens,
            completion_tokens=event.usage.completion_tokens,
            cached_tokens=event.usage.cached_tokens,
            reasoning_tokens=event.usage.reasoning_tokens,
        ),
        timings=pb.Timings(
            queue=duration(event.timings.queue),
            prefill=duration(event.timings.prefill),
            decode=duration(event.timings.decode),
        ),
    )


def _token_logprob(logprob: TokenLogprob, token_bytes: Callable[[int], bytes]) -> pb.TokenLogprob:
    def candidate(item: Candidate) -> pb.Candidate:
        return pb.Candidate(text=token_bytes(item.token_id), logprob=item.logprob)

    return pb.TokenLogprob(token=candidate(logprob.token), top=[candidate(item) for item in logprob.top])


def model_info(model: "HostedModel") -> pb.Model:
    """Return the model's entry in the response of ListModels."""
    return pb.Model(
        name=model.entry.name,
        description=model.entry.description,
        context_length=model.context_length,
        sequence_length=model.entry.sequence_length,
        weights=str(model.entry.weights),
        precision=model.precision,
        window=model.window,
        tool_format=model.tool_format,
        stands_in=model.entry.stands_in,
        has_reasoning=model.thoughts is not None,
        reply_shape=model.entry.shape,
        task=pb.TASK_TEXT_GENERATION,
        sampling_defaults=sampling_defaults(model) if model.sampling else None,
        adapters=model.adapters,
    )
