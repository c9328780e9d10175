"""Reads types and limits from a tool's JSON Schema, and converts unquoted argument values to the schema's types."""

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

_ALL_KINDS = ("null", "boolean", "integer", "number", "object", "array", "string")
# Longest chain of references that is followed. A schema may refer to itself.
_MAX_REFERENCES = 16
_MAX_PARTS = 256


def property_schemas(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas of an object's properties by name, including those within anyOf, oneOf and allOf."""
    found: dict[str, Any] = {}
    for part in _parts(schema, schema):
        properties = part.get("properties")
        if isinstance(properties, dict):
            found |= {name: value for name, value in properties.items() if name not in found}
    return found


def required_properties(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the properties that every object must have."""
    resolved = _resolved(schema, schema)
    parts = [resolved, *(_resolved(part, schema) for part in _list(resolved.get("allOf")))]
    return frozenset(name for part in parts for name in _list(part.get("required")) if isinstance(name, str))


def kinds(schema: object, root: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the JSON types that a schema allows, in the order in which `typed_value` tests them; all if it names none.

    Args:
        schema: Schema of the value.
        root: The tool's whole schema, in which references are resolved.
    """
    if not isinstance(schema, Mapping):
        return _ALL_KINDS
    named: set[str] = set()
    for part in _parts(schema, root):
        given = part.get("type")
        named.update(kind for kind in (given if isinstance(given, list) else [given]) if isinstance(kind, str))
        values = [*_list(part.get("enum")), *([part["const"]] if "const" in part else [])]
        if given is None:
            named.update(_kind_of(value) for value in values)
        if part.get("nullable") is True:
            named.add("null")
    return tuple(kind for kind in _ALL_KINDS if kind in named) or _ALL_KINDS


def constants(schema: object, root: Mapping[str, Any]) -> list[Any] | None:
    """Return the values that a schema enumerates, or None if it enumerates none."""
    part = _resolved(schema, root)
    if "const" in part:
        return [part["const"]]
    return part["enum"] if isinstance(part.get("enum"), list) and part["enum"] else None


def string_part(schema: object, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a schema with the limits of its strings.

    The result is empty if the schema has several such parts, or allows values other than strings and null.
    """
    parts = [part for part in _parts(schema, root) if part.get("type") in ("string", ["string", "null"])]
    is_text = set(kinds(schema, root)) <= {"string", "null"}
    return parts[0] if is_text and len(parts) == 1 else {}


def typed_value(text: str, schema: object, root: Mapping[str, Any]) -> Any:
    """Return a value in the first type of the schema that fits its text, or the text itself.

    Args:
        text: The value as the model wrote it.
        schema: Schema of the value; None: the tool does not declare the argument, and the text is the value.
        root: The tool's whole schema, in which references are resolved.
    """
    if schema is None:
        return text
    for constant in constants(schema, root) or ():
        if text == (constant if isinstance(constant, str) else json.dumps(constant)):
            return constant
    for kind in kinds(schema, root):
        if kind == "string":
            return text
        is_given, value = _as_kind(text.strip(), kind)
        if is_given:
            return value
    return text


def _as_kind(text: str, kind: str) -> tuple[bool, Any]:
    """Return True and the value if `text` is a value of the JSON type `kind`, else False and any object."""
    if kind == "null":
        return text.lower() in ("null", "none"), None
    if kind == "boolean":
        return text.lower() in ("true", "false"), text.lower() == "true"
    value = _parsed(text)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "integer":
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return is_number and isinstance(value, int), value
    if kind == "number":
        return is_number, value
    return isinstance(value, dict if kind == "object" else list), value


def _parsed(text: str) -> Any:
    """Return a JSON value, or a Python literal that JSON can represent; None if `text` is neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return value
    return None


def _parts(schema: object, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a schema and the schemas within its anyOf, oneOf and allOf, each once, and at most _MAX_PARTS of them."""
    waiting = [schema]
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_PARTS:
        part = _resolved(waiting.pop(0), root)
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += [inner for keyword in ("anyOf", "oneOf", "allOf") for inner in _list(part.get(keyword))]


def _resolved(schema: object, root: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            break
        schema = _pointed(root, schema["$ref"])
    return schema if isinstance(schema, Mapping) else {}


def _pointed(root: object, reference: str) -> object:
    """Return the part of a schema that a reference like #/$defs/x points to, or None."""
    if not reference.startswith("#"):
        return None
    found = root
    for key in filter(None, reference[1:].split("/")):
        key = key.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _kind_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {type(None): "null", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")
