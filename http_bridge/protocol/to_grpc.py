"""Converts a parsed body to the gRPC request. Does not depend on HTTP or on connections."""

from http_bridge.protocol.fidelity import check_request
from http_bridge.protocol.profiles import Profile
from http_bridge.protocol.run_body import RunBody, Turn
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

TOOL_CHOICES = {
    "auto": ToolChoice.TOOL_CHOICE_AUTO,
    "none": ToolChoice.TOOL_CHOICE_NONE,
    "required": ToolChoice.TOOL_CHOICE_REQUIRED,
}


def run_request(body: RunBody, profile: Profile, *, model: str, account: str) -> RunRequest:
    """Return the gRPC request for a valid body.

    Args:
        body: The body; its values are in the ranges of inference.proto.
        profile: API version, which determines the default of `max_tokens` and whether prompt and reply must fit the
            window.
        model: Name of the model.
        account: Account of the request; may be empty.

    Raises:
        ApiError: The profile is strict, and Workers AI would refuse the request.
    """
    check_request(body, profile, model)
    request = RunRequest(model=model, account=account, reject_if_busy=body.reject_if_busy, adapter=body.adapter)
    request.sampling.CopyFrom(
        # The table of sampling parameters and inference.proto have the same names; a test compares them.
        Sampling(
            **{"max_tokens": _default_max_tokens(body, profile), **body.sampling},  # type: ignore[arg-type]
            stop=body.stop,
            logit_bias=body.logit_bias,
        )
    )
    if body.prompt is not None and body.raw:
        request.text = body.prompt
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
    return profile.stream_max_tokens if body.stream else profile.max_tokens


def _chat(body: RunBody) -> Chat:
    turns = body.turns if body.prompt is None else (Turn(role="user", content=body.prompt),)
    return Chat(
        turns=[_turn(turn) for turn in turns],
        tools=[Tool(name=tool.name, description=tool.description, parameters=tool.parameters) for tool in body.tools],
        tool_choice=TOOL_CHOICES[body.tool_choice],
        tool_name=body.tool_name,
        allowed_tools=body.allowed_tools,
        parallel_tool_calls=body.parallel_tool_calls,
        continue_final_turn=body.continues_turn,
        omit_generation_prompt=body.omits_generation_prompt,
        template_arguments=body.template_arguments,
        reasoning_effort=body.reasoning_effort,
    )


def _turn(turn: Turn) -> ChatTurn:
    return ChatTurn(
        role=turn.role,
        content=turn.content,
        reasoning=turn.reasoning,
        tool_calls=[ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in turn.tool_calls],
        tool_call_id=turn.tool_call_id,
        name=turn.name,
    )


def _response_format(schema: str) -> ResponseFormat:
    return ResponseFormat(json_schema=schema) if schema else ResponseFormat(json_object=True)
