"""Tool-call formats: the markers of each, its detection in a chat template, and text for templates without tools.

If a chat template does not support tools, the prompt describes them in hermes format. tools/ reads calls and builds
grammars for them. tool_calls.py finds them in a reply. Works on text only. Does not depend on a tokenizer or gRPC.
"""

import json
import re
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Literal

from inference_server.generation import ToolCall

ToolFormat = Literal[
    "hermes",
    "llama3",
    "mistral",
    "mistral_args",
    "qwen3_coder",
    "glm45",
    "pythonic",
    "granite",
    "apertus",
    "kimi_k2",
    "deepseek_v3",
    "deepseek_v31",
]


@dataclass(frozen=True, slots=True)
class Markers:
    """Texts around the calls of a reply. A tokenizer may have control tokens for them.

    Attributes:
        begin: First characters of a call, or of a section with all calls.
        end: Last characters of a call or section; empty: the calls extend to the end of the reply.
        inner: Further control tokens within a call or section.
        is_optional: True if a call may also be the whole reply, without a marker.
    """

    begin: str
    end: str = ""
    inner: tuple[str, ...] = ()
    is_optional: bool = False


_TAGS = Markers("<tool_call>", "</tool_call>")
_DEEPSEEK = Markers(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
)
# Every format, with an example of a call and the models that write it.
MARKERS: Mapping[ToolFormat, Markers] = {
    # <tool_call>{"name": …, "arguments": {…}}</tool_call>, an object or an array: Hermes, Qwen, SmolLM2, Granite 4
    "hermes": _TAGS,
    # {"name": …, "parameters": {…}} as the whole reply, optionally after the marker: Llama 3.1 and later
    "llama3": Markers("<|python_tag|>", is_optional=True),
    # [TOOL_CALLS][{"name": …, "arguments": {…}}]: Mistral up to 2025
    "mistral": Markers("[TOOL_CALLS]", inner=("[ARGS]", "[CALL_ID]")),
    # [TOOL_CALLS]name[ARGS]{…}: newer Mistral
    "mistral_args": Markers("[TOOL_CALLS]", inner=("[ARGS]", "[CALL_ID]")),
    # <tool_call><function=name><parameter=x>value</parameter></function></tool_call>: Qwen3-Coder, Qwen3.5, Nemotron 3
    "qwen3_coder": _TAGS,
    # <tool_call>name<arg_key>x</arg_key><arg_value>value</arg_value></tool_call>: GLM 4.5 and later
    "glm45": Markers("<tool_call>", "</tool_call>", ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")),
    # [name(x=1)] as the whole reply: Llama 3.2 and 4 with a pythonic template
    "pythonic": Markers("<|python_start|>", inner=("<|python_end|>",), is_optional=True),
    # <|tool_call|>[{"name": …, "arguments": {…}}]: Granite 3, Phi 4 mini
    "granite": Markers("<|tool_call|>"),
    # <|tools_prefix|>[{"name": {…}}]<|tools_suffix|>: Apertus
    "apertus": Markers("<|tools_prefix|>", "<|tools_suffix|>"),
    # A section of calls, each with functions.name:0 and {…}: Kimi K2
    "kimi_k2": Markers(
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    ),
    # A section of calls, each with a name and {…} in a Markdown code block: DeepSeek V3, R1
    "deepseek_v3": _DEEPSEEK,
    # A section of calls, each with a name and {…}: DeepSeek V3.1
    "deepseek_v31": _DEEPSEEK,
}


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
    """Return a chat template's format for calls; hermes if the template contains no other or does not support tools."""
    text = str(template)
    if not supports_tools(template):
        return "hermes"
    if MARKERS["mistral"].begin in text:
        return "mistral_args" if "[ARGS]" in text else "mistral"
    if _DEEPSEEK.begin in text:
        return "deepseek_v3" if "```json" in text else "deepseek_v31"
    if "<function=" in text and "<parameter=" in text:
        return "qwen3_coder"
    signs: Mapping[str, ToolFormat] = {
        MARKERS["kimi_k2"].begin: "kimi_k2",
        MARKERS["apertus"].begin: "apertus",
        "<arg_key>": "glm45",
        MARKERS["granite"].begin: "granite",
        "[func_name": "pythonic",
        "python_tag": "llama3",
    }
    for sign, tool_format in signs.items():
        if sign in text:
            return tool_format
    return "llama3" if "ipython" in text and '"parameters"' in text else "hermes"


def supports_tools(template: object) -> bool:
    """Return True if a chat template describes tools to the model.

    `template`: Jinja text, a dictionary of several templates by name as transformers holds them, or None.
    """
    return isinstance(template, dict) or (isinstance(template, str) and re.search(r"\btools\b", template) is not None)


def visible_control_tokens(tool_format: ToolFormat) -> frozenset[str]:
    """Return the control tokens that are part of a call, so that decoding must keep their text."""
    markers = MARKERS[tool_format]
    return frozenset((markers.begin, markers.end, *markers.inner)) - {""}


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
        f"\n</tool_call>"
        for call in calls
    )


def result_text(content: str) -> str:
    """Return the result of a tool in hermes format."""
    return f"<tool_response>\n{content}\n</tool_response>"
