"""Turns a request body into a RunBody, whichever of the three forms it has: /ai/run's, or one of OpenAI's two.

A body is held to its schema first, so what is read here has the right type. Knows fields; knows nothing of HTTP or gRPC.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from http_bridge.errors import ApiError
from http_bridge.protocol.schemas import Inputs
from http_bridge.protocol.validation import MAX_DEPTH, Validator, bad_input, is_deeper
from tailrace_shared.request_fields import SAMPLING_FIELDS

Document = Mapping[str, Any]
ToolChoice = Literal["auto", "none", "required"]

# Values that a body may hold and the contract may not. No model's reply is longer than a uint32, and the server reduces
# max_tokens to the model's limit. OpenAI's top_p of 0 means the most likely token, as the smallest of /ai/run does.
_TO_CONTRACT: Mapping[str, Callable[[Any], float]] = {
    "max_tokens": lambda value: min(value, 2**32 - 1),
    "top_p": lambda value: max(value, 0.001),
    "seed": lambda value: value % 2**64,
}
# A JSON Schema in OpenAI's wrapping has no other keys than these.
_WRAPPING = {"name", "description", "schema", "strict"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments`: a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message: who speaks (1 to 64 characters) and what was said (may be empty)."""

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """`parameters`: a JSON Schema as text, or empty."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBody:
    """A valid body. Exactly one of `prompt` and `turns` is not empty; None means that the client left a field out."""

    prompt: str | None = None
    turns: tuple[Turn, ...] = ()
    raw: bool = False
    stream: bool = False
    # Sampling parameters that the client set, by their names in the contract, in the contract's ranges.
    sampling: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    reject_if_busy: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str = ""  # the one tool that must be called
    json_schema: str | None = None  # the form of the reply, as JSON text; empty: any JSON object
    logprobs: int | None = None  # alternatives for each token; None: no log probabilities
    includes_usage: bool = False
    echoes: bool = False


class BodyReader:
    """Reads the bodies that `inputs` describes. Thread-safe; every method raises ApiError 400/5006 for a wrong field."""

    def __init__(self, inputs: Inputs) -> None:
        self._prompt = Validator(inputs.prompt)
        self._messages = Validator(inputs.messages)
        self._generic = Validator(inputs.generic)
        self._chat = Validator(inputs.chat)
        self._completion = Validator(inputs.completion)

    def run(self, document: Document, *, model: str) -> RunBody:
        """A body of /ai/run. `messages` win over `prompt`, and over `raw`, which belongs to it.

        Raises ApiError: 400/5006 that names the wrong fields (the first 8) by their paths, 405/5005 for `lora`.
        """
        has_messages = document.get("messages") is not None
        has_prompt = document.get("prompt") is not None
        if not has_messages and not has_prompt:
            raise bad_input(
                _unmatched("required properties at '/' are 'prompt'", "required properties at '/' are 'messages'")
            )
        if problems := (self._messages if has_messages else self._prompt).problems(document):
            other = "prompt" if has_messages else "messages"
            missing = [] if has_messages and has_prompt else [f"required properties at '/' are '{other}'"]
            raise bad_input(_unmatched(*missing, *problems))
        if document.get("lora"):
            raise ApiError(405, 5005, f"The model {model} does not support LoRa inference")
        common = _common(document)
        if has_messages:
            return RunBody(**common, **_conversation(document))
        return RunBody(**common, prompt=document["prompt"], raw=document.get("raw") is True)

    def generic(self, document: Document) -> tuple[str, dict[str, Any]]:
        """Model and inputs of a body of /ai/run without a model in its path."""
        _hold_to(self._generic, document)
        options = {"options": document["options"]} if document.get("options") else {}
        return document["model"], {**document["input"], **options}

    def chat(self, document: Document) -> RunBody:
        """A body of /chat/completions."""
        _hold_to(self._chat, document)
        wanted = document.get("max_completion_tokens") or document.get("max_tokens")
        logprobs = _whole(document.get("top_logprobs") or 0) if document.get("logprobs") else None
        return RunBody(
            **_common({**document, "max_tokens": wanted}),
            **_conversation(document),
            logprobs=logprobs,
            includes_usage=_includes_usage(document),
        )

    def completion(self, document: Document) -> RunBody:
        """A body of /completions; the prompt is raw text, as there."""
        _hold_to(self._completion, document)
        prompt = document["prompt"]
        return RunBody(
            **_common(document),
            prompt=prompt if isinstance(prompt, str) else prompt[0],
            raw=True,
            logprobs=_whole(document.get("logprobs")),
            includes_usage=_includes_usage(document),
            echoes=document.get("echo") is True,
        )


def _hold_to(validator: Validator, document: Document) -> None:
    if problems := validator.problems(document):
        raise bad_input(", ".join(problems))


def _unmatched(*problems: str) -> str:
    """Workers AI holds a body to both of its forms, and tells what is in the way of each."""
    return f"oneOf at '/' not met, 0 matches: {', '.join(problems)}"


def _common(document: Document) -> dict[str, Any]:
    stop = document.get("stop")
    options = document.get("options") or {}
    return {
        "stream": document.get("stream") is True,
        "sampling": _sampling(document),
        "stop": (stop,) if isinstance(stop, str) else tuple(stop or ()),
        "reject_if_busy": options.get("rejectIfBusy") is True,
        "json_schema": _json_schema(document.get("response_format")),
    }


def _sampling(document: Document) -> dict[str, float]:
    """Return the sampling parameters that the body sets, in the contract's types and ranges."""
    values: dict[str, float] = {}
    for parameter in SAMPLING_FIELDS:
        if (value := document.get(parameter.name)) is not None:
            value = int(value) if parameter.kind == "integer" else value
            convert = _TO_CONTRACT.get(parameter.name)
            values[parameter.name] = value if convert is None else convert(value)
    return values


def _whole(value: float | None) -> int | None:
    """5.0 is a whole number too, as in JSON Schema."""
    return None if value is None else int(value)


def _conversation(document: Document) -> dict[str, Any]:
    choice: Any = document.get("tool_choice")
    is_named = isinstance(choice, dict)
    tool_name = choice["function"]["name"] if is_named else ""
    tools = tuple(_tool(tool) for tool in document.get("tools") or ())
    if is_named and tool_name not in [tool.name for tool in tools]:
        raise bad_input("'/tool_choice/function/name' names none of the tools")
    if choice == "required" and not tools:
        raise bad_input("'/tool_choice' needs tools")
    return {
        "turns": tuple(_turn(message, f"/messages/{index}") for index, message in enumerate(document["messages"])),
        "tools": tools,
        "tool_choice": "required" if is_named else choice or "auto",
        "tool_name": tool_name,
    }


def _turn(message: Document, path: str) -> Turn:
    content = message.get("content")
    calls = message.get("tool_calls") or ()
    return Turn(
        role=message["role"],
        content="".join(part["text"] for part in content) if isinstance(content, list) else content or "",
        tool_calls=tuple(_call(call, f"{path}/tool_calls/{index}") for index, call in enumerate(calls)),
        tool_call_id=message.get("tool_call_id") or "",
        name=message.get("name") or "",
    )


def _call(call: Document, path: str) -> ToolCall:
    function = call.get("function") or call
    if function.get("name") is None:
        raise bad_input(f"required properties at '{path}' are 'function'")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        place = f"{path}/function/arguments" if call.get("function") else f"{path}/arguments"
        arguments = _object(arguments or "{}", place)
    return ToolCall(call.get("id") or "", function["name"], json.dumps(arguments or {}, ensure_ascii=False))


def _object(text: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or is_deeper(value, MAX_DEPTH):
        raise bad_input(f"'{path}' must be a JSON object as text, nested at most {MAX_DEPTH} deep")
    return value


def _tool(tool: Document) -> Tool:
    function = tool["function"] if isinstance(tool.get("function"), dict) else tool
    parameters = function.get("parameters")
    return Tool(function["name"], function.get("description") or "", json.dumps(parameters) if parameters else "")


def _json_schema(response_format: Document | None) -> str | None:
    if not response_format or response_format["type"] == "text":
        return None
    if response_format["type"] == "json_object":
        return ""
    schema = response_format["json_schema"]
    if isinstance(schema, dict) and "schema" in schema and set(schema) <= _WRAPPING:
        schema = schema["schema"]
    return json.dumps(schema, ensure_ascii=False)


def _includes_usage(document: Document) -> bool:
    return (document.get("stream_options") or {}).get("include_usage") is True
