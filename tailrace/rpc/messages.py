"""Converts requests to messages of the gRPC contract, and the contract's replies to the client's types."""

import json
from collections.abc import Iterator

from tailrace.request import RunInput
from tailrace.types import (
    Candidate,
    Embeddings,
    Event,
    Finished,
    FinishReason,
    Message,
    Model,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCalled,
    Usage,
)
from tailrace.v1 import inference_pb2 as pb

# Larger numbers of tokens have the same effect: the server reduces them to the model's limits.
_MAX_UINT32 = 2**32 - 1
_CHOICES = {
    "auto": pb.TOOL_CHOICE_AUTO,
    "none": pb.TOOL_CHOICE_NONE,
    "required": pb.TOOL_CHOICE_REQUIRED,
}
_REASONS: dict[int, FinishReason] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TIME_LIMIT: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


def run_request(run: RunInput, account: str) -> pb.RunRequest:
    """Return the message for a request. Raises ValueError or TypeError for a value that no message can have."""
    # The table of sampling parameters and the contract have the same names; a test compares them.
    values = {name: value if name == "seed" else min(value, _MAX_UINT32) for name, value in run.sampling.items()}
    sampling = pb.Sampling(**values, stop=run.stop, logit_bias=run.logit_bias)
    request = pb.RunRequest(
        model=run.model, sampling=sampling, account=account, adapter=run.adapter, reject_if_busy=run.reject_if_busy
    )
    if run.text is not None:
        request.text = run.text
    else:
        request.chat.CopyFrom(_chat(run))
    if run.json_schema:
        request.response_format.json_schema = json.dumps(run.json_schema, ensure_ascii=False)
    elif run.json_schema is not None:
        request.response_format.json_object = True
    if run.logprobs is not None:
        request.logprobs.top = run.logprobs
        request.logprobs.SetInParent()
    return request


def events(response: pb.RunResponse) -> Iterator[Event]:
    """Yield the events of one message of a reply."""
    if response.HasField("delta"):
        delta = response.delta
        if delta.reasoning:
            yield ReasoningDelta(delta.reasoning)
        if delta.text or delta.logprobs:
            yield TextDelta(delta.text, tuple(map(_logprob, delta.logprobs)))
        for call in delta.tool_calls:
            yield ToolCalled(ToolCall(call.name, call.arguments, call.id))
    elif response.HasField("started"):
        yield Started(response.started.model, response.started.request_id)
    elif response.HasField("completed"):
        usage = response.completed.usage
        counts = Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
        yield Finished(_REASONS.get(response.completed.finish_reason, "stop"), counts)


def embeddings(response: pb.EmbedResponse, model: str) -> Embeddings:
    """Return the vectors of a reply."""
    return Embeddings([list(each.values) for each in response.embeddings], response.prompt_tokens, model)


def model(each: pb.Model) -> Model:
    """Return the description of a model."""
    return Model(
        name=each.name,
        description=each.description,
        task="text-embeddings" if each.task == pb.TASK_TEXT_EMBEDDING else "text-generation",
        window=each.window or each.context_length,
        max_output_tokens=each.sequence_length,
        dimensions=each.dimensions,
        adapters=tuple(each.adapters),
    )


def _chat(run: RunInput) -> pb.Chat:
    return pb.Chat(
        turns=map(_turn, run.messages),
        tools=map(_tool, run.tools),
        tool_choice=_CHOICES[run.tool_choice],
        tool_name=run.tool_name,
        parallel_tool_calls=run.parallel_tool_calls,
        continue_final_turn=run.continue_final_message,
        template_arguments=json.dumps(dict(run.template_arguments)) if run.template_arguments else "",
        reasoning_effort=run.reasoning_effort,
    )


def _turn(message: Message) -> pb.ChatTurn:
    return pb.ChatTurn(
        role=message.role,
        content=message.content,
        tool_calls=[pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls],
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning,
    )


def _tool(tool: Tool) -> pb.Tool:
    parameters = json.dumps(dict(tool.parameters), ensure_ascii=False) if tool.parameters else ""
    return pb.Tool(name=tool.name, description=tool.description, parameters=parameters)


def _logprob(each: pb.TokenLogprob) -> TokenLogprob:
    token = each.token
    return TokenLogprob(_text(token), token.logprob, token.text, tuple(map(_candidate, each.top)))


def _candidate(each: pb.Candidate) -> Candidate:
    return Candidate(_text(each), each.logprob, each.text)


def _text(each: pb.Candidate) -> str:
    return each.text.decode(errors="replace")
