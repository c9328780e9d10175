"""Defines RunBody, a parsed request body.

Every route that generates text converts its body to a RunBody, and to_grpc.py converts the RunBody to a gRPC request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ToolChoice = Literal["auto", "none", "required"]
Effort = Literal["", "none", "minimal", "low", "medium", "high", "xhigh"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in an earlier message. `arguments`: a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message of a conversation.

    Attributes:
        role: The speaker, 1 to 64 characters.
        content: The text; may be empty.
        reasoning: An assistant's thoughts before its text.
        tool_calls: Calls that an assistant's turn made.
        tool_call_id: In a tool's turn: the id of the call that it answers.
        name: In a tool's turn: the name of the tool.
    """

    role: str
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call. `parameters`: a JSON Schema as text, or empty."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBody:
    """A valid body. None means that the body does not have the field.

    Exactly one of `prompt` and `turns` is set, except for a body of the Responses API. Its conversation, tools and
    format are converted in api/responses.

    Attributes:
        prompt: Text of the prompt.
        further_prompts: Other prompts of the same request, each with its own replies.
        turns: Messages of the conversation.
        raw: Whether the prompt is used without the model's chat template.
        stream: Whether the client requested a stream.
        sampling: Sampling parameters of the body with the names and ranges of inference.proto.
        logit_bias: Number to add to the logit of a token, by the token's id.
        stop: Strings that end the reply.
        num_choices: Number of replies, at least 1.
        reject_if_busy: Refuse the request with 429 instead of queueing it.
        tools: Tools that the model may call.
        skipped_tools: Types of the body's tools that are not functions and were left out, without duplicates.
        tool_choice: Whether a tool may or must be called.
        tool_name: The tool that must be called; empty: any tool.
        allowed_tools: Names of the tools that may be called; empty: all.
        parallel_tool_calls: Whether one reply may contain several calls.
        continues_turn: Whether the reply continues the last turn.
        omits_generation_prompt: Whether the prompt ends without the beginning of the assistant's turn.
        template_arguments: Variables for the chat template, a JSON object as text; empty: none.
        reasoning_effort: Amount of thinking; empty: the template's default.
        hides_reasoning: Whether the reply leaves the model's thoughts out.
        json_schema: JSON Schema of the reply as text; empty: any JSON object; None: the reply is text.
        logprobs: Number of alternatives per token; None: no log probabilities.
        includes_usage: Whether a stream ends with a chunk that has the usage.
        echoes: Whether the reply begins with the prompt.
        adapter: Name of a LoRA adapter of the model; empty: none.
    """

    prompt: str | None = None
    further_prompts: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    raw: bool = False
    stream: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    num_choices: int = 1
    reject_if_busy: bool = False
    tools: tuple[Tool, ...] = ()
    skipped_tools: tuple[str, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str = ""
    allowed_tools: tuple[str, ...] = ()
    parallel_tool_calls: bool | None = None
    continues_turn: bool = False
    omits_generation_prompt: bool = False
    template_arguments: str = ""
    reasoning_effort: Effort = ""
    hides_reasoning: bool = False
    json_schema: str | None = None
    logprobs: int | None = None
    includes_usage: bool = False
    echoes: bool = False
    adapter: str = ""
