"""Builds Lark grammars (llguidance's dialect) for replies with tool calls, in every tool-call format.

Does not depend on a tokenizer: the caller passes a function that turns a text into a term of the grammar.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any, Literal

from inference_server.text.tool_formats import MARKERS, Tool, ToolFormat
from inference_server.text.tools.reading import NAMED_CALLS, TAGGED_CALLS, NamedCall, TaggedCall
from inference_server.text.tools.values import constants, kinds, property_schemas, required_properties, string_part

# Between the parts of a document, a model may write one line end and up to eight spaces. Without a limit, a small model
# may write white space until max_tokens.
JSON_OPTIONS = {"whitespace_pattern": r"\n?[ ]{0,8}"}
# Largest number of calls in one reply. Without a limit, a small model may write calls until max_tokens.
MAX_CALLS = 8

Literally = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyForm:
    """Form of a reply with tool calls.

    Attributes:
        tools: The tools that may be called, at least one.
        is_parallel: True if a reply may have several calls.
        beside: Alternative to calls: nothing, free text (which may precede calls too), or a document that fits
            `document`.
        document: JSON Schema of the document.
    """

    tools: Items[Tool]
    is_parallel: bool = True
    beside: Literal["nothing", "text", "document"] = "nothing"
    document: Mapping[str, Any] | None = None

    def with_any_arguments(self) -> "ReplyForm":
        """Return the same form for tools whose arguments may have any values."""
        tools = [
            replace(tool, parameters={"properties": dict.fromkeys(property_schemas(tool.parameters), {})})
            for tool in self.tools
        ]
        return replace(self, tools=tools)


def reply_grammar(tool_format: ToolFormat, form: ReplyForm, literal: Literally) -> str:
    """Return a Lark grammar for replies in the given form.

    Args:
        tool_format: Format of the calls.
        form: Form of the replies.
        literal: Function that turns text into a term of the grammar (Grammars.literal).
    """
    builder = _Builder(tool_format, form, literal)
    return "\n".join((*builder.start(), *builder.calls())) + "\n"


class _Builder:
    def __init__(self, tool_format: ToolFormat, form: ReplyForm, literal: Literally) -> None:
        self._format = tool_format
        self._form = form
        self._literal = literal
        self._markers = MARKERS[tool_format]
        self._begin = "" if self._markers.is_optional else literal(self._markers.begin)

    def start(self) -> Iterator[str]:
        """Yield the rules of the reply: calls, or the form's alternative to them."""
        calls = f"{self._begin} calls"
        match self._form.beside:
            case "nothing":
                yield f"start: {calls}"
            case "document":
                yield f"start: {calls} | document"
                yield f"document: {_json(self._form.document or {})}"
            case "text" if self._markers.is_optional:  # a call is the whole reply
                first = "{" if self._format == "llama3" else r"\["
                yield "start: calls | TEXT"
                yield rf"TEXT: /([^\s{first}](?s:.*))?/"
            case "text" if self._begin.startswith("<["):  # a control token, which no text matches
                yield f"start: TEXT | {calls} | TEXT {calls}"
                yield "TEXT: /(?s:.+)/"
            case "text":
                marker = _escaped(self._markers.begin)
                yield "start: TEXT | opening calls"
                yield f"opening[suffix={_quoted(self._markers.begin)}]: /(?s:.*)/"
                yield f"TEXT: /(?s:.*)/ & ~/(?s:.*){marker}(?s:.*)/"

    def calls(self) -> Iterator[str]:
        """Yield the rules of the calls after the first marker."""
        yield self._repeated()
        yield "one: " + " | ".join(f"call_{index}" for index in range(len(self._form.tools)))
        for index, tool in enumerate(self._form.tools):
            if self._format in NAMED_CALLS:
                yield from self._named(index, tool, NAMED_CALLS[self._format])
            elif self._format in TAGGED_CALLS:
                yield from self._tagged(index, tool, TAGGED_CALLS[self._format])
            elif self._format == "pythonic":
                yield from self._pythonic(index, tool)
            else:
                yield from self._object(index, tool)

    def _repeated(self) -> str:
        end = self._literal(self._markers.end) if self._markers.end else ""
        match self._format:
            case "hermes" | "qwen3_coder":
                return "calls: " + self._list(f'"\\n" one "\\n" {end}', f'"\\n" {self._begin}')
            case "glm45":
                return "calls: " + self._list(f"one {end}", f'"\\n" {self._begin}')
            case "llama3":
                return "calls: " + self._list("one", '"; "')
            case "mistral_args":
                return "calls: " + self._list("one", self._begin)
            case "kimi_k2" | "deepseek_v3" | "deepseek_v31":
                between = NAMED_CALLS[self._format].between
                return f"calls: {self._list('one', _quoted(between) if between else '')} {end}"
            case _:
                return f'calls: "[" {self._list("one", _quoted(", "))} "]" {end}'

    def _list(self, one: str, between: str) -> str:
        """Return one call, or several with `between` before each further one."""
        return f"{one} ({between} {one}){{0,{MAX_CALLS - 1}}}" if self._form.is_parallel else one

    def _object(self, index: int, tool: Tool) -> Iterator[str]:
        name = json.dumps(tool.name, ensure_ascii=False)
        if self._format == "apertus":
            opening = f"{{{name}: "
        else:
            key = "parameters" if self._format == "llama3" else "arguments"
            opening = f'{{"name": {name}, "{key}": '
        yield f'call_{index}: {_quoted(opening)} arguments_{index} "}}"'
        yield self._arguments(index, tool)

    def _named(self, index: int, tool: Tool, call: NamedCall) -> Iterator[str]:
        # Each text of a format may contain several control tokens, so `_terms` splits it.
        name = f"functions.{tool.name}:" if self._format == "kimi_k2" else tool.name
        begin = "" if self._format == "mistral_args" else self._terms(call.begin)
        number = "/[0-9]{1,3}/" if self._format == "kimi_k2" else ""
        end = self._terms(call.end)
        yield f"call_{index}: {begin} {_quoted(name)} {number} {self._terms(call.separator)} arguments_{index} {end}"
        yield self._arguments(index, tool)

    def _terms(self, text: str) -> str:
        """Return the terms of a text. Each of the format's inner markers becomes a separate term."""
        for marker in self._markers.inner:
            before, found, after = text.partition(marker)
            if found:
                return " ".join(filter(None, (self._terms(before), self._literal(marker), self._terms(after))))
        return _quoted(text) if text else ""

    def _arguments(self, index: int, tool: Tool) -> str:
        # Each tool's arguments are a separate document, so that $refs within it still resolve.
        return f"arguments_{index}: {_json({'type': 'object', **tool.parameters})}"

    def _tagged(self, index: int, tool: Tool, tags: TaggedCall) -> Iterator[str]:
        line = '"\\n"' if tags.has_lines else '"\\n"?'
        root, required, parts = tool.parameters, required_properties(tool.parameters), []
        for number, (key, schema) in enumerate(property_schemas(root).items()):
            rule = f"value_{index}_{number}"
            opening = " ".join(map(self._terms, (tags.key[0], key, tags.key[1])))
            part = f"{opening} {line if tags.has_lines else ''} {rule} {line}"
            parts.append(part if key in required else f"({part})?")
            yield from self._value(rule, schema, root, tags)
        name = _quoted(tags.name[0] + tool.name + tags.name[1])
        end = _quoted(tags.end) if tags.end else ""
        yield f"call_{index}: {name} {line} {' '.join(parts)} {end}"

    def _value(self, rule: str, schema: object, root: Mapping[str, Any], tags: TaggedCall) -> Iterator[str]:
        """Yield the rules of a value with the text that ends it."""
        end = ("\n" if tags.has_lines else "") + tags.value_end
        term = self._literal(tags.value_end)
        is_text = not term.startswith("<[")
        closing = (
            _quoted(end) if is_text else f"{_quoted(end.removesuffix(tags.value_end)) if tags.has_lines else ''} {term}"
        )
        if (given := constants(schema, root)) is not None:
            texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in given]
            yield f"{rule}: ({' | '.join(map(_quoted, texts))}) {closing}"
        elif "string" not in kinds(schema, root):
            yield f"{rule}: {rule}_json {closing}"
            shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
            yield f"{rule}_json: {_json({**shared, **schema} if isinstance(schema, Mapping) else {})}"
        elif is_text:
            yield f"{rule}[suffix={_quoted(end)}]: {rule.upper()}"
            yield f"{rule.upper()}: {_text(string_part(schema, root), 'null' in kinds(schema, root))}"
        else:
            yield f"{rule}: {rule.upper()} {closing}"
            yield f"{rule.upper()}: {_text(string_part(schema, root), 'null' in kinds(schema, root))}"

    def _pythonic(self, index: int, tool: Tool) -> Iterator[str]:
        root, required = tool.parameters, required_properties(tool.parameters)
        properties = property_schemas(root)
        ordered = sorted(properties, key=lambda key: key not in required)
        rules = []
        for number, key in enumerate(ordered):
            rule, schema = f"value_{index}_{number}", properties[key]
            shared = {name: root[name] for name in ("$defs", "definitions") if name in root}
            if kinds(schema, root) == ("boolean",):
                yield f'{rule}: {_quoted(key + "=")} ("True" | "False")'
            else:
                document = {**shared, **schema} if isinstance(schema, Mapping) else {}
                yield f"{rule}: {_quoted(key + '=')} {rule}_json"
                yield f"{rule}_json: {_json(document)}"
            rules.append(rule)
        yield from self._python_arguments(index, rules, sum(key in required for key in ordered))
        yield f'call_{index}: {_quoted(tool.name + "(")} list_{index} ")"'

    def _python_arguments(self, index: int, rules: list[str], num_required: int) -> Iterator[str]:
        """Yield rules for arguments with commas between them: the required ones, then any of the others in order."""
        needed = ' ", " '.join(rules[:num_required])
        optional = rules[num_required:]
        if num_required:
            rest = " ".join(f'(", " {rule})?' for rule in optional)
            yield f"list_{index}: {needed} {rest}"
            return
        # A rule for each tail of the list keeps the grammar's size linear in the number of arguments.
        for number, rule in enumerate(optional):
            yield f'rest_{index}_{number}: (", " {rule})? rest_{index}_{number + 1}'
        yield f'rest_{index}_{len(optional)}: ""'
        choices = [f"{rule} rest_{index}_{number + 1}" for number, rule in enumerate(optional)]
        yield f"list_{index}: " + " | ".join(('""', *choices))


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


def _text(limits: Mapping[str, Any], may_be_null: bool) -> str:
    """Return a regular expression for a string without quotes, with the length and the pattern of its schema."""
    low, high, pattern = limits.get("minLength", 0), limits.get("maxLength"), limits.get("pattern")
    if not isinstance(low, int) or not isinstance(high, int | None):
        low, high = 0, None
    length = "*" if high is None and not low else f"{{{low},{'' if high is None else high}}}"
    terms = [f"/(?s:.{length})/"]
    if isinstance(pattern, str):
        is_anchored = pattern.endswith("$") and not pattern.endswith(r"\$")
        inner = pattern.removeprefix("^").removesuffix("$" if is_anchored else "")
        before, after = "" if pattern.startswith("^") else "(?s:.*)", "" if is_anchored else "(?s:.*)"
        terms.append(f"/{before}({_in_slashes(inner)}){after}/")
    text = " & ".join(terms)
    return f"({text}) | /null/" if may_be_null and text != "/(?s:.*)/" else text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Return a regular expression that matches a text, for a place between slashes."""
    return "".join(f"\\{character}" if character in r"[](){}|/\^$.*+?" else character for character in text)


def _in_slashes(pattern: str) -> str:
    """Return a regular expression for a place between slashes, in which a slash has one backslash before it."""
    escaped = re.sub(r"(\\.)|/", lambda match: match.group(1) or r"\/", pattern, flags=re.DOTALL)
    return escaped.replace("\n", "\\n")
