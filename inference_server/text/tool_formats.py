"""Tool calls in the model's own form: how tools are shown to it, how a call is enforced, and how it is read.

The forms known, and the models that write them:

    hermes    <tool_call>{"name": …, "arguments": {…}}</tool_call>, an object or an array of them: Hermes, Qwen, SmolLM2
    llama3    the whole reply is {"name": …, "parameters": {…}}, perhaps behind <|python_tag|>: Llama 3.1 and later
    mistral   [TOOL_CALLS][{"name": …, "arguments": {…}}], or [TOOL_CALLS]name[ARGS]{…}: Mistral

A model whose chat template knows no tools is shown them in hermes form. Knows texts; knows no tokens and no gRPC.
"""

import json
import random
import re
import string
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

from inference_server.generation import ToolCall
from inference_server.serving.catalog import ToolFormat
from inference_server.text.detokenizer import overlap

# What a call begins with where it is told apart from other text.
_MARKERS: Mapping[ToolFormat, str] = {
    "hermes": "<tool_call>",
    "llama3": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
}
_HERMES_END = "</tool_call>"
_MISTRAL_ARGUMENTS = "[ARGS]"
_ARGUMENTS_KEYS = ("arguments", "parameters")
# Mistral's chat template takes ids of exactly this form; the others take any.
_ID_LENGTH = 9
_ID_LETTERS = string.ascii_letters + string.digits
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask for. `parameters`: JSON Schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def for_template(self) -> dict[str, Any]:
        """The form in which chat templates are given tools."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def format_of_template(template: object) -> ToolFormat:
    """The form that a chat template teaches the model."""
    text = str(template)
    if _MARKERS["mistral"] in text:
        return "mistral"
    if "python_tag" in text or ("ipython" in text and '"parameters"' in text):
        return "llama3"
    return "hermes"


def knows_tools(template: object) -> bool:
    """Whether a chat template shows tools to the model; transformers may also hold several by name."""
    return isinstance(template, dict) or (isinstance(template, str) and re.search(r"\btools\b", template) is not None)


def shown_tokens(form: ToolFormat) -> frozenset[str]:
    """Control tokens that belong to a call, so that its text must not lose them."""
    return frozenset((_MARKERS[form], _MISTRAL_ARGUMENTS)) if form == "mistral" else frozenset((_MARKERS[form],))


def system_text(tools: Items[Tool]) -> str:
    """Tells a model about tools whose chat template cannot."""
    listed = "\n".join(json.dumps(tool.for_template(), ensure_ascii=False) for tool in tools)
    return (
        "You can call functions. Each line between <tools> and </tools> describes one, with the JSON Schema of its "
        f"arguments:\n<tools>\n{listed}\n</tools>\n"
        "To call one, answer with its name and arguments as JSON in this form and nothing else:\n"
        '<tool_call>\n{"name": "<name>", "arguments": {<arguments>}}\n</tool_call>'
    )


def call_text(calls: Iterable[ToolCall]) -> str:
    """Calls of an earlier turn, in hermes form."""
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': json.loads(call.arguments)}, ensure_ascii=False)}"
        f"\n{_HERMES_END}"
        for call in calls
    )


def answer_text(content: str) -> str:
    """What a tool has answered, in hermes form."""
    return f"<tool_response>\n{content}\n</tool_response>"


def grammar(form: ToolFormat, tools: Items[Tool], literal: Any) -> str:
    """Lark grammar of one call of one of the tools. `literal`: Grammars.literal."""
    calls = "\n".join(_rule(index, tool, form) for index, tool in enumerate(tools))
    choice = " | ".join(f"call_{index}" for index in range(len(tools)))
    marker = literal(_MARKERS[form])
    match form:
        case "hermes":
            start = rf'start: {marker} "\n" one "\n" {literal(_HERMES_END)}'
        case "llama3":
            start = "start: one"
        case "mistral":
            start = f'start: {marker} "[" one "]"'
    return f"{start}\none: {choice}\n{calls}\n"


def _rule(index: int, tool: Tool, form: ToolFormat) -> str:
    key = "parameters" if form == "llama3" else "arguments"
    opening = json.dumps(f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{key}": ', ensure_ascii=False)
    # A document of its own for each tool's arguments: what its $refs point to stays where it was.
    schema = {"type": "object", **tool.parameters}
    return f'call_{index}: {opening} arguments_{index} "}}"\narguments_{index}: %json {json.dumps(schema)}'


class CallParser:
    """Finds the tool calls in a reply's text, piece by piece. What is no call stays text; nothing is lost."""

    def __init__(self, form: ToolFormat, names: Iterable[str], ids: random.Random) -> None:
        """`names`: of the request's tools; others are not called. `ids`: draws the calls' ids."""
        self._form = form
        self._marker = _MARKERS[form]
        self._names = frozenset(names)
        self._ids = ids
        self._held = ""
        self._in_call = False
        self.num_calls = 0

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """More of the reply: the text and the calls that became certain with it."""
        self._held += text
        if self._form == "llama3" and not self.num_calls and self._may_be_bare_call():
            return "", ()
        if self._form != "hermes":
            return ("", ()) if self._in_call else (self._text_before_marker(), ())
        shown, calls = "", list[ToolCall]()
        while True:
            if not self._in_call:
                shown += self._text_before_marker()
            if not self._in_call or (end := self._held.find(_HERMES_END)) < 0:
                return shown, tuple(calls)
            body, self._held = self._held[: end + len(_HERMES_END)], self._held[end + len(_HERMES_END) :]
            self._in_call = False
            found = self._read(body[len(self._marker) : -len(_HERMES_END)])
            if found:
                calls += found
            else:
                shown += body

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The rest, when the reply has ended."""
        held, self._held = self._held, ""
        is_call = self._in_call or self._form == "llama3"
        body = held.strip().removeprefix(self._marker) if is_call else None
        calls = self._read(body) if body is not None else ()
        return ("", calls) if calls else (held, ())

    def _may_be_bare_call(self) -> bool:
        start = self._held.lstrip()
        return start.startswith("{") or self._marker.startswith(start[: len(self._marker)])

    def _text_before_marker(self) -> str:
        """The text that can be sent: up to the marker, or up to what may become one."""
        position = self._held.find(self._marker)
        self._in_call = position >= 0
        if position < 0:
            position = len(self._held) - overlap(self._held, self._marker)
        shown, self._held = self._held[:position], self._held[position:]
        # What stands between calls is no text.
        return shown if shown.strip() or not self.num_calls else ""

    def _read(self, body: str) -> tuple[ToolCall, ...]:
        found = _mistral_calls(body) if self._form == "mistral" and _MISTRAL_ARGUMENTS in body else _json_calls(body)
        if found is None or any(name not in self._names for name, _ in found):
            return ()
        self.num_calls += len(found)
        return tuple(ToolCall(self._new_id(), name, json.dumps(given, ensure_ascii=False)) for name, given in found)

    def _new_id(self) -> str:
        return "".join(self._ids.choices(_ID_LETTERS, k=_ID_LENGTH))


def _json_calls(body: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Names and arguments of the calls written as JSON: objects or arrays of them, parted by ; or space. None: no calls."""
    found: list[tuple[str, dict[str, Any]]] = []
    while body := body.strip(" \t\r\n;"):
        try:
            value, end = _DECODER.raw_decode(body)
        except (ValueError, RecursionError):
            return None
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                return None
            arguments: object = next((item[key] for key in _ARGUMENTS_KEYS if key in item), {})
            if not isinstance(arguments, dict):
                return None
            found.append((item["name"], arguments))
        body = body[end:]
    return found or None


def _mistral_calls(body: str) -> list[tuple[str, dict[str, Any]]] | None:
    found: list[tuple[str, dict[str, Any]]] = []
    for part in body.split(_MARKERS["mistral"]):
        name, _, arguments = part.partition(_MISTRAL_ARGUMENTS)
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        found.append((name.strip(), value))
    return found or None
