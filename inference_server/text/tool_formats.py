"""Tool-call formats: how a prompt describes tools, how a grammar enforces a call, and which markers a call begins with.

The formats, and the models that write them:

    hermes    <tool_call>{"name": …, "arguments": {…}}</tool_call>, an object or an array of them: Hermes, Qwen, SmolLM2
    llama3    the whole reply is {"name": …, "parameters": {…}}, optionally after <|python_tag|>: Llama 3.1 and later
    mistral   [TOOL_CALLS][{"name": …, "arguments": {…}}], or [TOOL_CALLS]name[ARGS]{…}: Mistral

If a chat template does not support tools, the prompt describes them in hermes format. tool_calls.py parses the calls.
Works on text only. Does not depend on a tokenizer or gRPC.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Literal

from inference_server.generation import ToolCall

ToolFormat = Literal["hermes", "llama3", "mistral"]

# First characters of a call. If the tokenizer has a control token for them, the model writes that token.
CALL_MARKERS: Mapping[ToolFormat, str] = {
    "hermes": "<tool_call>",
    "llama3": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
}
HERMES_END = "</tool_call>"
MISTRAL_ARGUMENTS = "[ARGS]"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters`: JSON Schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def for_template(self) -> dict[str, Any]:
        """Return the tool as chat templates expect it: OpenAI's JSON object."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def detect_tool_format(template: object) -> ToolFormat:
    """Return the format that a chat template uses for calls; hermes if it contains no other."""
    text = str(template)
    if CALL_MARKERS["mistral"] in text:
        return "mistral"
    if "python_tag" in text or ("ipython" in text and '"parameters"' in text):
        return "llama3"
    return "hermes"


def supports_tools(template: object) -> bool:
    """Return True if a chat template describes tools to the model.

    `template`: Jinja text, a dictionary of several templates by name as transformers holds them, or None.
    """
    return isinstance(template, dict) or (isinstance(template, str) and re.search(r"\btools\b", template) is not None)


def visible_control_tokens(tool_format: ToolFormat) -> frozenset[str]:
    """Return the control tokens that are part of a call, so that decoding must keep their text."""
    marker = CALL_MARKERS[tool_format]
    return frozenset((marker, MISTRAL_ARGUMENTS)) if tool_format == "mistral" else frozenset((marker,))


def system_text(tools: Items[Tool]) -> str:
    """Return a system prompt that describes tools, for a chat template that does not support them."""
    listed = "\n".join(json.dumps(tool.for_template(), ensure_ascii=False) for tool in tools)
    return (
        "You can call functions. Each line between <tools> and </tools> describes one, with the JSON Schema of its "
        f"arguments:\n<tools>\n{listed}\n</tools>\n"
        "To call one, answer with its name and arguments as JSON in this form and nothing else:\n"
        '<tool_call>\n{"name": "<name>", "arguments": {<arguments>}}\n</tool_call>'
    )


def call_text(calls: Iterable[ToolCall]) -> str:
    """Return the calls of an earlier turn in hermes format."""
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': json.loads(call.arguments)}, ensure_ascii=False)}"
        f"\n{HERMES_END}"
        for call in calls
    )


def result_text(content: str) -> str:
    """Return the result of a tool in hermes format."""
    return f"<tool_response>\n{content}\n</tool_response>"


def call_grammar(tool_format: ToolFormat, tools: Items[Tool], literal: Callable[[str], str]) -> str:
    """Return a Lark grammar that accepts one call of one of the tools.

    Args:
        tool_format: Format of the call.
        tools: At least one tool.
        literal: Function that turns text into a term of the grammar (Grammars.literal).
    """
    calls = "\n".join(_rule(index, tool, tool_format) for index, tool in enumerate(tools))
    choice = " | ".join(f"call_{index}" for index in range(len(tools)))
    marker = literal(CALL_MARKERS[tool_format])
    match tool_format:
        case "hermes":
            start = rf'start: {marker} "\n" one "\n" {literal(HERMES_END)}'
        case "llama3":
            start = "start: one"
        case "mistral":
            start = f'start: {marker} "[" one "]"'
    return f"{start}\none: {choice}\n{calls}\n"


def _rule(index: int, tool: Tool, tool_format: ToolFormat) -> str:
    key = "parameters" if tool_format == "llama3" else "arguments"
    opening = json.dumps(f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{key}": ', ensure_ascii=False)
    # Each tool's arguments are a separate document, so that $refs within it still resolve.
    schema = {"type": "object", **tool.parameters}
    return f'call_{index}: {opening} arguments_{index} "}}"\narguments_{index}: %json {json.dumps(schema)}'
