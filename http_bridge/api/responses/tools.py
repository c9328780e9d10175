"""Reads the tools and the tool choice of a Responses body.

A model calls functions. A custom tool becomes a function with one text, and the functions of a namespace get its name as a
prefix. `Toolbox.origin` finds the client's tool for a call. Tools that OpenAI would run itself are left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from http_bridge.protocol.validation import bad_input
from tailrace.v1 import inference_pb2 as pb

Document = Mapping[str, Any]

# The argument of a custom tool's function.
INPUT = "input"
_SEPARATOR = "__"


@dataclass(frozen=True, slots=True)
class Origin:
    """The client's tool behind a function. `namespace`: empty if it is in none."""

    name: str
    namespace: str = ""
    is_custom: bool = False


@dataclass(slots=True)
class Toolbox:
    """The tools of a request.

    Attributes:
        functions: The functions for the model.
        shown: The client's tools without the tools that are left out, for the reply.
        left_out: Types of the tools that are left out.
    """

    functions: list[pb.Tool] = field(default_factory=list)
    shown: list[Document] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    _origins: dict[str, Origin] = field(default_factory=dict)

    def origin(self, function: str) -> Origin:
        """Return the client's tool behind a function."""
        return self._origins.get(function) or Origin(function)

    def add(self, tools: list[Document], path: str) -> None:
        """Add the tools of a list.

        Args:
            tools: The list.
            path: Its path in the body.

        Raises:
            ApiError: 400/5006 if a tool has no name or is not an object.
        """
        for index, tool in enumerate(tools):
            place = f"{path}/{index}"
            if tool.get("type") == "namespace":
                members = [member for member in tool.get("tools") or () if isinstance(member, Mapping)]
                for member in members:
                    self._add(member, place, namespace=_name(tool, place))
                self.shown.append(tool)
            elif self._add(tool, place):
                self.shown.append(_shown(tool))

    def _add(self, tool: Document, path: str, *, namespace: str = "") -> bool:
        kind = tool.get("type") or "function"
        if kind not in ("function", "custom"):
            self.left_out.append(str(kind))
            return False
        function = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
        origin = Origin(_name(function, path), namespace, kind == "custom")
        name = function_name(origin.name, namespace)
        self._origins[name] = origin
        if origin.is_custom:
            self.functions.append(_custom(name, function))
        else:
            self.functions.append(
                pb.Tool(name=name, description=_text(function, "description", path), parameters=_schema(function, path))
            )
        return True


def function_name(name: str, namespace: object) -> str:
    """Return the name of the function for a tool; `namespace` may be empty or None."""
    return f"{namespace}{_SEPARATOR}{name}" if namespace else name


def choose(choice: Any, toolbox: Toolbox, chat: pb.Chat) -> None:
    """Set the tool choice of `chat`.

    Args:
        choice: The body's `tool_choice`.
        toolbox: The body's tools.
        chat: The message with the functions of `toolbox`.

    Raises:
        ApiError: 400/5006 if the choice is not supported or names no tool of the body.
    """
    if isinstance(choice, Mapping):
        _choose_named(choice, toolbox, chat)
    elif choice in (None, "auto"):
        chat.tool_choice = pb.TOOL_CHOICE_AUTO
    elif choice == "none":
        chat.tool_choice = pb.TOOL_CHOICE_NONE
    elif choice in ("required", "any"):
        chat.tool_choice = pb.TOOL_CHOICE_REQUIRED
    else:
        raise bad_input(f"enum {choice:.100} not in none,auto,required at '/tool_choice'")
    if chat.tool_choice == pb.TOOL_CHOICE_REQUIRED and not toolbox.functions:
        raise bad_input(f"'/tool_choice' needs tools{_hosted(toolbox)}")


def _choose_named(choice: Document, toolbox: Toolbox, chat: pb.Chat) -> None:
    kind = choice.get("type")
    if kind in ("function", "custom"):
        chat.tool_choice = pb.TOOL_CHOICE_REQUIRED
        chat.tool_name = _known(choice, toolbox, "/tool_choice")
    elif kind == "allowed_tools":
        _allow(choice, toolbox, chat)
    else:
        raise bad_input(
            f"'/tool_choice/type' {json.dumps(kind)[:100]} is not supported: only functions and custom tools can be called"
        )


def _allow(choice: Document, toolbox: Toolbox, chat: pb.Chat) -> None:
    """Set the allowed tools. OpenAI's chat API has them in an object of their own."""
    inner = choice.get("allowed_tools")
    allowed = inner if isinstance(inner, Mapping) else choice
    mode, tools = allowed.get("mode") or "auto", allowed.get("tools")
    if mode not in ("auto", "required"):
        raise bad_input(f"enum {str(mode):.100} not in auto,required at '/tool_choice/mode'")
    if not isinstance(tools, list):
        raise bad_input("required properties at '/tool_choice' are 'tools'")
    callable_tools = [
        (index, tool)
        for index, tool in enumerate(tools)
        if isinstance(tool, Mapping) and (tool.get("type") or "function") in ("function", "custom")
    ]
    names = [_known(tool, toolbox, f"/tool_choice/tools/{index}") for index, tool in callable_tools]
    if not names and mode == "required":
        raise bad_input("'/tool_choice/tools' names no function or custom tool, so that none can be called")
    chat.tool_choice = pb.TOOL_CHOICE_REQUIRED if mode == "required" else pb.TOOL_CHOICE_AUTO
    if names:
        chat.allowed_tools.extend(names)
    else:
        chat.tool_choice = pb.TOOL_CHOICE_NONE


def _known(tool: Document, toolbox: Toolbox, path: str) -> str:
    function = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
    name = function_name(_name(function, path), function.get("namespace"))
    if name not in [known.name for known in toolbox.functions]:
        raise bad_input(f"'{path}/name' is not the name of one of the tools")
    return name


def _hosted(toolbox: Toolbox) -> str:
    kinds = ", ".join(sorted(set(toolbox.left_out)))
    return f", and the tools of the body ({kinds:.200}) are not functions" if kinds else ""


def _custom(name: str, tool: Document) -> pb.Tool:
    description = str(tool.get("description") or "")
    form = tool.get("format")
    if isinstance(form, Mapping) and form.get("type") == "grammar":
        grammar = f"The input must match this {form.get('syntax')} grammar:\n{form.get('definition')}"
        description = f"{description}\n\n{grammar}" if description else grammar
    schema = {
        "type": "object",
        "properties": {INPUT: {"type": "string"}},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return pb.Tool(name=name, description=description, parameters=json.dumps(schema))


def _name(tool: Document, path: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise bad_input(f"required properties at '{path}' are 'name'")
    return name


def _text(tool: Document, key: str, path: str) -> str:
    value = tool.get(key)
    if value is not None and not isinstance(value, str):
        raise bad_input(f"'{path}/{key}' must be a string")
    return value or ""


def _schema(tool: Document, path: str) -> str:
    parameters = tool.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise bad_input(f"'{path}/parameters' must be a JSON Schema of type object")
    return json.dumps(parameters, ensure_ascii=False) if parameters else ""


def _shown(tool: Document) -> Document:
    """Return the tool with the keys that the SDKs' types require."""
    if tool.get("type") == "custom":
        return tool
    function = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
    return {"type": "function", "description": None, "parameters": None, "strict": False, **function}
