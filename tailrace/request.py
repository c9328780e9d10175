"""Converts the arguments of `run` and `stream` to one request, which each transport then writes in its own format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailrace.errors import InvalidRequestError
from tailrace.options import RunOptions
from tailrace.types import Message, Tool, ToolCall
from tailrace_shared.request_fields import MAX_TOP_LOGPROBS, SAMPLING_FIELDS, SamplingField

# Keys of a message's thoughts in the dictionaries of several APIs, all of which are accepted.
_REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """A request for a reply, with valid sampling parameters.

    Attributes:
        model: Name of the model.
        text: Raw text to continue; None: `messages` is the prompt.
        messages: The conversation, oldest message first.
        sampling: Values of the sampling parameters that are set, by name.
        stop: Texts that end the reply.
        logit_bias: Number to add to the logit of a token, by its id.
        logprobs: Number of alternatives per token; None: no log probabilities.
        tools: The tools that the model may call.
        tool_choice: "auto", "none" or "required".
        tool_name: The tool that must be called; empty: any.
        parallel_tool_calls: Whether one reply may contain several calls; None: the server's default.
        json_schema: JSON Schema of the reply; empty: any JSON object; None: the reply is text.
        adapter: Name of a LoRA adapter; empty: none.
        reasoning_effort: Amount of thinking; empty: the template's default.
        template_arguments: Variables for the chat template.
        continue_final_message: Whether the reply continues the last message.
        reject_if_busy: Whether the server refuses the request instead of queueing it.
    """

    model: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    tool_name: str = ""
    parallel_tool_calls: bool | None = None
    json_schema: Mapping[str, Any] | None = None
    adapter: str = ""
    reasoning_effort: str = ""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    reject_if_busy: bool = False


def run_input(prompt: str | None, model: str, options: RunOptions) -> RunInput:
    """Return the request. Values that only the server can validate are not checked.

    Raises:
        InvalidRequestError: A sampling parameter is out of its range, or two arguments contradict each other.
        TypeError: `options` has an unknown key.
    """
    if unknown := options.keys() - RunOptions.__annotations__.keys():
        raise TypeError(
            f"unknown argument {', '.join(sorted(unknown))}; known are {', '.join(RunOptions.__annotations__)}"
        )
    raw = options.get("raw", False)
    choice = options.get("tool_choice") or "auto"
    is_named = choice not in ("auto", "none", "required")
    stop = options.get("stop") or ()
    schema: Mapping[str, Any] | None = options.get("json_schema")
    if schema is None and options.get("json_object"):
        schema = {}
    return RunInput(
        model=model,
        text=_raw_text(prompt, options) if raw else None,
        messages=() if raw else _messages(prompt, options),
        sampling=_sampling(options),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logit_bias=options.get("logit_bias") or {},
        logprobs=_logprobs(options.get("logprobs")),
        tools=tuple(map(_tool, options.get("tools") or ())),
        tool_choice="required" if is_named else choice,
        tool_name=choice if is_named else "",
        parallel_tool_calls=options.get("parallel_tool_calls"),
        json_schema=schema,
        adapter=options.get("adapter") or "",
        reasoning_effort=options.get("reasoning_effort") or "",
        template_arguments=options.get("template_arguments") or {},
        continue_final_message=bool(options.get("continue_final_message")),
        reject_if_busy=bool(options.get("reject_if_busy")),
    )


def invalid_value(error: Exception) -> InvalidRequestError:
    """Return the error for a value that no request can have, such as a number in place of a text."""
    return InvalidRequestError(f"A value of the request has a wrong type or range: {error}.", reason="INVALID_FIELD")


def _raw_text(prompt: str | None, options: RunOptions) -> str:
    needs_template = ("messages", "system", "tools", "reasoning_effort", "template_arguments", "continue_final_message")
    if prompt is None or (used := [name for name in needs_template if options.get(name)]):
        reason = "needs a prompt" if prompt is None else f"uses no chat template, which {used[0]} needs"
        raise InvalidRequestError(f"A raw request {reason}.", reason="INVALID_FIELD")
    return prompt


def _messages(prompt: str | None, options: RunOptions) -> tuple[Message, ...]:
    given: Sequence[Message | Mapping[str, Any]] = options.get("messages") or ()
    if (prompt is None) == (not given):
        problem = "no prompt and no messages" if prompt is None else "a prompt and messages"
        raise InvalidRequestError(f"The request has {problem}: pass one of them.", reason="INVALID_FIELD")
    system = options.get("system")
    first = (Message("system", system),) if system else ()
    return (*first, *map(message, given)) if prompt is None else (*first, Message("user", prompt))


def message(given: Message | Mapping[str, Any]) -> Message:
    """Return the message of a dictionary in OpenAI's format; a Message is returned unchanged.

    Raises:
        InvalidRequestError: `given` is neither a Message nor a dictionary, has no role, or its content is not text.
    """
    if isinstance(given, Message):
        return given
    _check_mapping(given, "message")
    role, content = given.get("role"), given.get("content")
    if isinstance(content, list | tuple):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = None if None in parts else "".join(map(str, parts))
    if not isinstance(role, str) or not isinstance(content, str | None):
        raise InvalidRequestError(f"A message needs a role and text: {dict(given)!r}.", reason="INVALID_FIELD")
    return Message(
        role,
        content or "",
        tuple(map(_tool_call, given.get("tool_calls") or ())),
        given.get("tool_call_id") or "",
        given.get("name") or "",
        next((given[key] for key in _REASONING_KEYS if given.get(key)), ""),
    )


def _check_mapping(given: object, kind: str) -> None:
    if not isinstance(given, Mapping):
        sentence = f"A {kind} is a tailrace.{kind.capitalize()} or a dictionary, not {given!r}."
        raise InvalidRequestError(sentence, reason="INVALID_FIELD")


def _tool_call(given: ToolCall | Mapping[str, Any]) -> ToolCall:
    if isinstance(given, ToolCall):
        return given
    function = given.get("function") or given
    arguments = function.get("arguments") or "{}"
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(function.get("name") or "", text, given.get("id") or "")


def _tool(given: Tool | Mapping[str, Any]) -> Tool:
    if isinstance(given, Tool):
        return given
    _check_mapping(given, "tool")
    function = given.get("function") or given
    return Tool(function.get("name") or "", function.get("description") or "", function.get("parameters") or {})


def _sampling(options: RunOptions) -> dict[str, float]:
    values: Mapping[str, Any] = options
    given = {each: values[each.name] for each in SAMPLING_FIELDS if values.get(each.name) is not None}
    return {each.name: _checked(each, value) for each, value in given.items()}


def _checked(each: SamplingField, value: Any) -> float:
    kind = int if each.kind == "integer" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or value not in each.grpc:
        wanted = "a whole number" if each.kind == "integer" else "a number"
        sentence = f"{each.name} is {value!r}: it must be {wanted}, {each.grpc}."
        raise InvalidRequestError(sentence, reason="INVALID_FIELD")
    return value


def _logprobs(value: int | None) -> int | None:
    if value is not None and not 0 <= value <= MAX_TOP_LOGPROBS:
        sentence = f"logprobs is {value}: it must be 0 to {MAX_TOP_LOGPROBS}, the number of alternatives per token."
        raise InvalidRequestError(sentence, reason="INVALID_FIELD")
    return value
