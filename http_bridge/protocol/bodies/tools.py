"""Converts tools and the choice among them, in every format that clients send.

A tool is a function if it has a `function`, or the type "function", or no type. Every other tool (web_search, mcp, file_search
and others) runs at the API's provider. Such a tool is left out of the prompt, and a header of the reply lists its type.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from http_bridge.protocol.run_body import Tool, ToolChoice
from http_bridge.protocol.validation.documents import bad_field

Document = Mapping[str, Any]

_MODES: Mapping[str, ToolChoice] = {"none": "none", "auto": "auto", "required": "required", "any": "required"}
_MAX_NAMED = 20
_MAX_TYPE = 64


@dataclass(frozen=True, slots=True)
class Choice:
    """The tools that may be called, as the values of RunBody's fields with the same names."""

    tool_choice: ToolChoice = "auto"
    tool_name: str = ""
    allowed_tools: tuple[str, ...] = ()
    parallel_tool_calls: bool | None = None


def is_function(tool: Document) -> bool:
    """Return True if the tool is a function, which the client runs."""
    return isinstance(tool.get("function"), dict) or tool.get("type") in (None, "function")


def functions(tools: Sequence[Document]) -> tuple[Tool, ...]:
    """Return the tools that are functions. `tools` must fit the schema."""
    return tuple(_tool(tool) for tool in tools if is_function(tool))


def skipped(tools: Sequence[Document]) -> tuple[str, ...]:
    """Return the types of the tools that are not functions, without duplicates, each at most 64 characters."""
    return tuple(dict.fromkeys(str(tool["type"])[:_MAX_TYPE] for tool in tools if not is_function(tool)))


def tool_fields(document: Document) -> dict[str, Any]:
    """Return RunBody's fields about tools for a body with `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises:
        ApiError: 400/5006 for a choice that the tools do not allow.
    """
    given = document.get("tools") or ()
    tools, others = functions(given), skipped(given)
    choice = tool_choice(document.get("tool_choice"), [tool.name for tool in tools], others)
    parallel = document.get("parallel_tool_calls")
    return {
        "tools": tools,
        "skipped_tools": others,
        "tool_choice": choice.tool_choice,
        "tool_name": choice.tool_name,
        "allowed_tools": choice.allowed_tools,
        "parallel_tool_calls": choice.parallel_tool_calls if parallel is None else parallel,
    }


def tool_choice(choice: Any, names: Collection[str], others: Sequence[str] = ()) -> Choice:
    """Return the choice in a body.

    Args:
        choice: The body's `tool_choice`: a string or an object in a format of OpenAI, Workers AI or Anthropic, or None.
        names: Names of the tools that are functions.
        others: Types of the tools that were left out.

    Raises:
        ApiError: 400/5006 if the choice has no known format, or names a tool that cannot be called.
    """
    names = frozenset(names)
    if isinstance(choice, dict):
        return _object_choice(choice, names, others)
    if choice in (None, ""):
        return Choice()
    if (mode := _MODES.get(choice)) is not None:
        return _mode(mode, names, others)
    if choice in names:
        return _one(choice)
    raise bad_field("/tool_choice", f"is none, auto, required, any, or an object that names a tool, not {choice:.100}")


def _one(name: str) -> Choice:
    # As in OpenAI's API, the reply to a choice of one tool has exactly one call.
    return Choice("required", name, parallel_tool_calls=False)


def _mode(mode: ToolChoice, names: Collection[str], others: Sequence[str]) -> Choice:
    if mode == "required" and not names:
        # A required call of a tool that was left out cannot be made.
        left_out = f", and {_listed(others)} is not a function" if others else ""
        raise bad_field("/tool_choice", f"needs tools{left_out}")
    return Choice(mode)


def _object_choice(choice: Document, names: Collection[str], others: Sequence[str]) -> Choice:
    kind = choice.get("type")
    if kind == "allowed_tools":
        return _allowed(choice, names, others)
    if isinstance(kind, str) and kind in _MODES:
        mode = _mode(_MODES[kind], names, others)
        is_single = choice.get("disable_parallel_tool_use") is True
        return Choice(mode.tool_choice, parallel_tool_calls=False) if is_single else mode
    if kind in (None, "function", "tool"):
        nested = choice.get("function")
        path = "/tool_choice/function/name" if isinstance(nested, dict) else "/tool_choice/name"
        name = nested.get("name") if isinstance(nested, dict) else choice.get("name")
        if not isinstance(name, str):
            raise bad_field("/tool_choice", "does not name a function: send {type: function, function: {name: …}}")
        if name not in names:
            raise bad_field(path, "is not the name of one of the tools")
        return _one(name)
    raise bad_field("/tool_choice", f"names a tool of type {str(kind):.64}, and only functions can be called here")


def _allowed(choice: Document, names: Collection[str], others: Sequence[str]) -> Choice:
    """Return the choice of OpenAI's allowed_tools, nested as in chat completions or flat as in responses."""
    is_nested = isinstance(choice.get("allowed_tools"), dict)
    inner = choice["allowed_tools"] if is_nested else choice
    path = "/tool_choice/allowed_tools" if is_nested else "/tool_choice"
    mode, listed = inner.get("mode") or "auto", inner.get("tools")
    if mode not in ("auto", "required", "any"):
        raise bad_field(f"{path}/mode", "is auto or required")
    if not isinstance(listed, list) or not listed:
        raise bad_field(f"{path}/tools", "is a list of at least one tool")
    allowed = []
    for index, name in _listed_names(listed, f"{path}/tools", others):
        if name not in names:
            raise bad_field(f"{path}/tools/{index}", "is not one of the tools")
        allowed.append(name)
    if not allowed and _MODES[mode] == "required":
        raise bad_field(f"{path}/tools", "has no function, and one of its tools must be called")
    # If every allowed tool was left out, none can be called.
    return Choice(_MODES[mode] if allowed else "none", allowed_tools=tuple(dict.fromkeys(allowed)))


def _listed_names(listed: Sequence[Any], path: str, others: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield index and name of each function in a list of allowed tools. Tools that were left out are skipped."""
    left_out = frozenset(others)
    for index, tool in enumerate(listed):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(tool, str):
            yield index, tool
        elif isinstance(tool, dict) and is_function(tool):
            nested = tool.get("function")
            name = nested.get("name") if isinstance(nested, dict) else tool.get("name")
            yield index, name if isinstance(name, str) else ""
        elif not isinstance(kind, str) or kind not in left_out:
            raise bad_field(f"{path}/{index}", "is not one of the tools")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED])


def _tool(tool: Document) -> Tool:
    function = tool["function"] if isinstance(tool.get("function"), dict) else tool
    # Anthropic's API names the schema input_schema.
    parameters = function.get("parameters") or function.get("input_schema")
    return Tool(function["name"], function.get("description") or "", json.dumps(parameters) if parameters else "")
