"""Reads the tools and the tool choice of a Responses body.

A model calls functions. A custom tool becomes a function with one string argument, and the functions of a namespace get
its name as a prefix. `Toolbox.origin` finds the client's tool for a call. Tools that OpenAI would run itself are left
out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from http_bridge.protocol.bodies.tools import Choice, tool_choice
from http_bridge.protocol.validation.documents import bad_field, bad_input
from http_bridge.protocol.validation.problems import Problem
from tailrace.v1 import inference_pb2 as pb

Document = Mapping[str, Any]

# Name of the only argument of a custom tool's function.
INPUT = "input"
_SEPARATOR = "__"
_MAX_TYPE = 64


@dataclass(frozen=True, slots=True)
class Origin:
    """The client's tool behind a function. `namespace`: empty if the tool is in none."""

    name: str
    namespace: str = ""
    is_custom: bool = False


@dataclass(slots=True)
class Toolbox:
    """The tools of a request.

    Attributes:
        functions: The functions for the model.
        shown: The client's tools for the reply, without those that are left out. A namespace is shown as a whole.
    """

    functions: list[pb.Tool] = field(default_factory=list)
    shown: list[Document] = field(default_factory=list)
    _left_out: dict[str, None] = field(default_factory=dict)
    _origins: dict[str, Origin] = field(default_factory=dict)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Types of the tools that are left out, without duplicates, each at most 64 characters."""
        return tuple(self._left_out)

    def origin(self, function: str) -> Origin:
        """Return the client's tool behind a function. An unknown function is a tool of the same name."""
        return self._origins.get(function) or Origin(function)

    def add(self, tools: list[Document], path: str) -> None:
        """Add the tools of a list.

        Args:
            tools: The list.
            path: Its path in the body.

        Raises:
            ApiError: 400/5006 if a tool has no name, or a description or parameters of the wrong type.
        """
        for index, tool in enumerate(tools):
            place = f"{path}/{index}"
            if tool.get("type") == "namespace":
                members = tool.get("tools")
                for member in members if isinstance(members, list) else ():
                    if not isinstance(member, Mapping):
                        continue
                    self._add(member, place, namespace=_name(tool, place))
                self.shown.append(tool)
            elif self._add(tool, place):
                self.shown.append(_shown(tool))

    def _add(self, tool: Document, path: str, *, namespace: str = "") -> bool:
        kind = tool.get("type") or "function"
        if kind not in ("function", "custom"):
            self._left_out[str(kind)[:_MAX_TYPE]] = None
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


def choose(choice: Any, toolbox: Toolbox) -> Choice:
    """Return the tool choice of a body. For a custom tool, or one in a namespace, the result names the tool's function.

    Args:
        choice: The body's `tool_choice`.
        toolbox: The body's tools.

    Raises:
        ApiError: 400/5006 if the choice has no known format, or names a tool that cannot be called.
    """
    if isinstance(choice, dict):
        choice = _as_function(choice)
        if isinstance(tools := choice.get("tools"), list):
            choice["tools"] = [_as_function(tool) for tool in tools]
    return tool_choice(choice, [function.name for function in toolbox.functions], toolbox.left_out)


def _as_function(tool: Any) -> Any:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        return dict(tool) if isinstance(tool, dict) else tool
    kind = "function" if tool.get("type") == "custom" else tool.get("type")
    return {**tool, "type": kind, "name": function_name(tool["name"], tool.get("namespace"))}


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
        raise bad_input(Problem(path, f"required properties at '{path}' are 'name'"))
    return name


def _text(tool: Document, key: str, path: str) -> str:
    value = tool.get(key)
    if value is not None and not isinstance(value, str):
        raise bad_field(f"{path}/{key}", "must be a string")
    return value or ""


def _schema(tool: Document, path: str) -> str:
    parameters = tool.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise bad_field(f"{path}/parameters", "must be a JSON Schema of type object")
    return json.dumps(parameters, ensure_ascii=False) if parameters else ""


def _shown(tool: Document) -> Document:
    """Return a function tool with all keys that the SDKs' types require; a custom tool is returned unchanged."""
    if tool.get("type") == "custom":
        return tool
    function = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
    return {"type": "function", "description": None, "parameters": None, "strict": False, **function}
