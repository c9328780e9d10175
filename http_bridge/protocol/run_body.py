"""Converts a request body to a RunBody, from the format of /ai/run or from one of OpenAI's two formats.

A body is validated against its schema first, so the fields have the right types here. Does not depend on HTTP or gRPC.
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

# Conversions of values that a body may contain and that inference.proto does not allow. The server reduces max_tokens
# to the model's limit, so the largest uint32 has the same effect. OpenAI's top_p of 0 selects the most likely token, as
# the smallest top_p of /ai/run does.
_TO_CONTRACT: Mapping[str, Callable[[Any], float]] = {
    "max_tokens": lambda value: min(value, 2**32 - 1),
    "top_p": lambda value: max(value, 0.001),
    "seed": lambda value: value % 2**64,
}
# Keys of OpenAI's object around a JSON Schema.
_WRAPPING = {"name", "description", "schema", "strict"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in an earlier message. `arguments`: a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message of a conversation. `role`: 1 to 64 characters. `content` may be empty."""

    role: str
    content: str = ""
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
    """A valid body. Exactly one of `prompt` and `turns` is set; None means that the body does not have the field.

    Attributes:
        prompt: Text of the prompt.
        turns: Messages of the conversation.
        raw: Whether the prompt is used without the model's chat template.
        stream: Whether the client requested a stream.
        sampling: Sampling parameters of the body with the names and ranges of inference.proto.
        stop: Strings that end the reply.
        reject_if_busy: Refuse the request with 429 instead of queueing it.
        tools: Tools that the model may call.
        tool_choice: Whether a tool may or must be called.
        tool_name: The tool that must be called; empty: any tool.
        json_schema: JSON Schema of the reply as text; empty: any JSON object; None: the reply is text.
        logprobs: Number of alternatives per token; None: no log probabilities.
        includes_usage: Whether a stream ends with a chunk that has the usage.
        echoes: Whether the reply begins with the prompt.
    """

    prompt: str | None = None
    turns: tuple[Turn, ...] = ()
    raw: bool = False
    stream: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    reject_if_busy: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str = ""
    json_schema: str | None = None
    logprobs: int | None = None
    includes_usage: bool = False
    echoes: bool = False


class BodyReader:
    """Reads the bodies of one bridge. Thread-safe. Every method raises ApiError 400/5006 for an invalid field."""

    def __init__(self, inputs: Inputs) -> None:
        """Compile the schemas of `inputs`."""
        self._prompt = Validator(inputs.prompt)
        self._messages = Validator(inputs.messages)
        self._generic = Validator(inputs.generic)
        self._chat = Validator(inputs.chat)
        self._completion = Validator(inputs.completion)
        self._responses = Validator(inputs.responses)

    def run(self, document: Document, *, model: str) -> RunBody:
        """Return the fields of a body of /ai/run. If it has `messages`, its `prompt` and `raw` are ignored.

        Raises:
            ApiError: 400/5006 with the paths of the first 8 invalid fields, 405/5005 for `lora`.
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
        """Return the model and the input of a body of /ai/run without a model in its path."""
        _validate(self._generic, document)
        options = {"options": document["options"]} if document.get("options") else {}
        return document["model"], {**document["input"], **options}

    def chat(self, document: Document) -> RunBody:
        """Return the fields of a body of /chat/completions."""
        _validate(self._chat, document)
        wanted = document.get("max_completion_tokens") or document.get("max_tokens")
        logprobs = _whole(document.get("top_logprobs") or 0) if document.get("logprobs") else None
        return RunBody(
            **_common({**document, "max_tokens": wanted}),
            **_conversation(document),
            logprobs=logprobs,
            includes_usage=_includes_usage(document),
        )

    def completion(self, document: Document) -> RunBody:
        """Return the fields of a body of /completions. The prompt is raw text, as in OpenAI's API."""
        _validate(self._completion, document)
        prompt = document["prompt"]
        return RunBody(
            **_common(document),
            prompt=prompt if isinstance(prompt, str) else prompt[0],
            raw=True,
            logprobs=_whole(document.get("logprobs")),
            includes_usage=_includes_usage(document),
            echoes=document.get("echo") is True,
        )

    def responses(self, document: Document) -> RunBody:
        """Return the fields of a body of /responses that other bodies have too. It has no conversation yet."""
        _validate(self._responses, document)
        return RunBody(
            **_common({**document, "max_tokens": document.get("max_output_tokens"), "response_format": None})
        )


def _validate(validator: Validator, document: Document) -> None:
    if problems := validator.problems(document):
        raise bad_input(", ".join(problems))


def _unmatched(*problems: str) -> str:
    """Return Workers AI's message for a body that matches neither of its two schemas, with the problems of both."""
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
    """Return the sampling parameters that the body sets, with the types and ranges of inference.proto."""
    values: dict[str, float] = {}
    for parameter in SAMPLING_FIELDS:
        if (value := document.get(parameter.name)) is not None:
            value = int(value) if parameter.kind == "integer" else value
            convert = _TO_CONTRACT.get(parameter.name)
            values[parameter.name] = value if convert is None else convert(value)
    return values


def _whole(value: float | None) -> int | None:
    """Return the value as an integer; JSON Schema accepts 5.0 as one."""
    return None if value is None else int(value)


def _conversation(document: Document) -> dict[str, Any]:
    choice: Any = document.get("tool_choice")
    is_named = isinstance(choice, dict)
    tool_name = choice["function"]["name"] if is_named else ""
    tools = tuple(_tool(tool) for tool in document.get("tools") or ())
    if is_named and tool_name not in [tool.name for tool in tools]:
        raise bad_input("'/tool_choice/function/name' is not the name of one of the tools")
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
