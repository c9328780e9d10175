"""Reads the calls in the text between two markers of a reply, in every tool-call format.

Each reader returns names and arguments, or None if the text is anything else. Does not depend on a tokenizer or gRPC.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.text.tool_formats import ToolFormat
from inference_server.text.tools import pythonic
from inference_server.text.tools.values import property_schemas, typed_value

Found = list[tuple[str, dict[str, Any]]]
# Schemas of the arguments, by the tool's name.
Schemas = Mapping[str, Mapping[str, Any]]

_ARGUMENTS_KEYS = ("arguments", "parameters")
_DECODER = json.JSONDecoder()
_OPEN_STRING = re.compile(r'(?:[^"\\]|\\.|"(?:[^"\\]|\\.)*+")*+"(?:[^"\\]|\\.)*+', re.DOTALL)


@dataclass(frozen=True, slots=True)
class NamedCall:
    """Texts of a format in which the name precedes the JSON arguments: begin, name, separator, arguments, end."""

    begin: str
    separator: str
    end: str = ""
    between: str = ""  # between two calls, in a grammar


NAMED_CALLS: Mapping[ToolFormat, NamedCall] = {
    "mistral_args": NamedCall("[TOOL_CALLS]", "[ARGS]"),
    "kimi_k2": NamedCall("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    "deepseek_v3": NamedCall(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>", between="\n"
    ),
    "deepseek_v31": NamedCall("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
}


@dataclass(frozen=True, slots=True)
class TaggedCall:
    """Texts of a format that writes the arguments between tags, without quotes.

    Attributes:
        name: Text before and after the name.
        key: Text before and after an argument's name.
        value_end: Text after an argument's value.
        end: Text after the arguments.
        has_lines: True if each value begins on a new line and ends before a line break.
    """

    name: tuple[str, str]
    key: tuple[str, str]
    value_end: str
    end: str
    has_lines: bool


TAGGED_CALLS: Mapping[ToolFormat, TaggedCall] = {
    "qwen3_coder": TaggedCall(("<function=", ">"), ("<parameter=", ">"), "</parameter>", "</function>", True),
    "glm45": TaggedCall(("", ""), ("<arg_key>", "</arg_key><arg_value>"), "</arg_value>", "", False),
}
_NAME = {
    "qwen3_coder": re.compile(r"\s*<function=([^>\n]+)>"),
    "glm45": re.compile(r"\s*([^<\n]+)"),
}
_ARGUMENT = {
    "qwen3_coder": re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>(?=\s*(?:<parameter=|\Z))", re.DOTALL),
    "glm45": re.compile(
        r"\s*<arg_key>([^<]+)</arg_key>\s*<arg_value>(.*?)</arg_value>(?=\s*(?:<arg_key>|\Z))", re.DOTALL
    ),
}
_VALUE_BEGIN = {"qwen3_coder": "<parameter=", "glm45": "<arg_value>"}


def read_calls(tool_format: ToolFormat, body: str, schemas: Schemas) -> Found | None:
    """Return the calls in the text between two markers, or None if it is anything else.

    Args:
        tool_format: Format of the calls.
        body: The text, without the markers around it.
        schemas: Schemas of the tools' arguments by the tools' names. A call of another tool makes the result None.
    """
    match tool_format:
        case "qwen3_coder" | "glm45":
            # Models with these formats also write JSON between the same markers.
            found = _tagged_calls(tool_format, body, schemas) or _json_calls(body)
        case "pythonic":
            found = pythonic.read(body, schemas)
        case "apertus":
            found = _keyed_calls(body)
        case "kimi_k2" | "deepseek_v3" | "deepseek_v31":
            found = _named_calls(NAMED_CALLS[tool_format], body)
        case "mistral" | "mistral_args":
            call = NAMED_CALLS["mistral_args"]
            found = _named_calls(call, call.begin + body) if call.separator in body else _json_calls(body)
        case _:
            found = _json_calls(body, needs_arguments=tool_format == "llama3")
    return None if found is None or any(name not in schemas for name, _ in found) else found


def is_open(tool_format: ToolFormat, body: str) -> bool:
    """Return True if a call's value is incomplete at the end of `body`, so that a marker after `body` is part of it."""
    if tool_format not in TAGGED_CALLS or body.lstrip().startswith("{"):
        return _OPEN_STRING.fullmatch(body) is not None
    tags = TAGGED_CALLS[tool_format]
    value = body.rfind(_VALUE_BEGIN[tool_format])
    return not body.rstrip().endswith(tags.end) or (value >= 0 and tags.value_end not in body[value:])


def _json_calls(body: str, *, needs_arguments: bool = False) -> Found | None:
    """Return calls that are written as JSON objects or arrays, separated by semicolons or white space."""
    found: Found = []
    while body := body.strip(" \t\r\n;"):
        try:
            value, end = _DECODER.raw_decode(body)
        except (ValueError, RecursionError):
            return None
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                return None
            given = [item[key] for key in _ARGUMENTS_KEYS if key in item]
            if not isinstance(given[0] if given else {}, dict) or (needs_arguments and not given):
                return None
            found.append((item["name"], given[0] if given else {}))
        body = body[end:]
    return found or None


def _keyed_calls(body: str) -> Found | None:
    """Return calls that are written as a JSON array of objects with one key, the name."""
    try:
        items = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found: Found = []
    for item in items if isinstance(items, list) else [items]:
        if not isinstance(item, dict) or len(item) != 1 or not isinstance(next(iter(item.values())), dict):
            return None
        found += item.items()
    return found or None


def _named_calls(call: NamedCall, body: str) -> Found | None:
    """Return calls whose name precedes their JSON arguments."""
    found: Found = []
    while body := body.strip():
        head, separator, rest = body.partition(call.separator.strip())
        if not separator or not head.startswith(call.begin):
            return None
        rest = rest.lstrip()
        try:
            value, end = _DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        body = rest[end:].lstrip()
        if not isinstance(value, dict) or not body.startswith(call.end.strip()):
            return None
        body = body[len(call.end.strip()) :]
        found.append((_plain_name(head[len(call.begin) :]), value))
    return found or None


def _plain_name(head: str) -> str:
    """Return the name in the text before a call's arguments, without Kimi's call number and Mistral's call id."""
    name = head.partition("[CALL_ID]")[0].strip()
    numbered = re.fullmatch(r"functions\.(.+):\d+", name)
    return numbered.group(1) if numbered else name


def _tagged_calls(tool_format: ToolFormat, body: str, schemas: Schemas) -> Found | None:
    """Return the one call whose arguments are written between tags."""
    tags = TAGGED_CALLS[tool_format]
    body = body.rstrip()
    name = _NAME[tool_format].match(body)
    if name is None or not body.endswith(tags.end) or (tool := name.group(1).strip()) not in schemas:
        return None
    root, arguments = schemas[tool], dict[str, Any]()
    properties = property_schemas(root)
    rest, position = body[: len(body) - len(tags.end)], name.end()
    while argument := _ARGUMENT[tool_format].match(rest, position):
        key, value = argument.group(1).strip(), argument.group(2)
        if tags.has_lines:
            value = value.removeprefix("\n").removesuffix("\n")
        arguments[key] = typed_value(value, properties.get(key), root)
        position = argument.end()
    return None if rest[position:].strip() else [(tool, arguments)]
