"""Parses bodies and validates them against a JSON Schema; error messages have Workers AI's wording.

This module contains no schemas: callers pass them.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Never

import jsonschema_rs

from http_bridge.errors import ApiError
from http_bridge.protocol.validation.excerpt import beginning, field_names
from http_bridge.protocol.validation.problems import Problem, plain_clause, plain_clauses, plain_sentence
from http_bridge.protocol.validation.surrogates import path_of_surrogate

Schema = Mapping[str, Any]

# A body can have a million invalid fields. The error lists a few of them, and other requests must not wait for the
# rest.
MAX_PROBLEMS = 8
# jsonschema_rs collects all errors before it returns the first one, so the search for more than one error covers only
# this many items and keys.
_MAX_ITEMS = 4_096
# Deepest nesting of arrays and objects in a body: far below Python's recursion limit, and more than clients need.
MAX_DEPTH = 128
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# First bytes of zlib's format, which HTTP calls deflate. JSON never begins with an x.
_ZLIB_MAGIC = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LARGEST_NUMBER = 1e300
_MAX_DIGITS = 20  # length of -2**63, including its sign, and of 2**64 - 1


def bad_input(problem: str) -> ApiError:
    """Return the error for an invalid field or body: 400/5006 with `problem`, a clause without a full stop."""
    named = problem if isinstance(problem, Problem) else None
    return ApiError(
        400,
        5006,
        f"Bad input: Error: {problem}",
        param=named.param if named else None,
        plain=plain_sentence(named.plain if named else problem),
    )


def bad_field(path: str, clause: str) -> ApiError:
    """Return the error for one invalid field: `clause` follows the quoted path."""
    return bad_input(Problem(path, f"'{path}' {clause}"))


def bad_fields(problems: Sequence[Problem]) -> ApiError:
    """Return one error for several invalid fields. Its `param` is the first field."""
    return bad_input(Problem(problems[0].path, ", ".join(problems), plain_clauses(problems)))


def inflated(data: bytes, max_bytes: int) -> bytes:
    """Return a body decompressed from deflate data without zlib's header. Raises ApiError 400/5006 for invalid data."""
    return _unpacked(data, max_bytes, "deflate", -zlib.MAX_WBITS)


def load(data: bytes, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object of a body. Its first bytes, not the headers, determine its compression: gzip, deflate or none.

    Raises:
        ApiError: 400/3003 for an empty body, 413/3006 if it unpacks to more than `max_bytes`, 400/5006 if it is not a JSON
            object.
    """
    data = unpack(data, max_bytes)
    document = _parsed(data)
    # The number of opening brackets bounds the depth. In most documents it is small enough to skip the check.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and is_deeper(document, MAX_DEPTH):
        raise _too_deep()
    if not isinstance(document, dict):
        kind = type_name(document)
        plain = plain_clause("type", "/", document, "object", kind)
        raise bad_input(Problem("/", f"Type mismatch of '/', '{kind}' not in 'object'", plain))
    # "\ud800" is valid JSON, but neither UTF-8 nor a protobuf message can contain it.
    if _SURROGATE.search(data) and (path := path_of_surrogate(document)) is not None:
        raise bad_field(path or "/", "contains half of a surrogate pair, which is not a character")
    return document


def unpack(data: bytes, max_bytes: int) -> bytes:
    """Return a body without its compression, which its first bytes determine.

    Raises:
        ApiError: 400/3003 for an empty body, 413/3006 if it unpacks to more than `max_bytes`, 400/5006 for zstd or invalid
            compressed data.
    """
    if not data:
        raise ApiError(400, 3003, "Request is missing headers or body: body")
    if data.startswith(_GZIP_MAGIC):
        return _unpacked(data, max_bytes, "gzip", zlib.MAX_WBITS | 16)
    if data.startswith(_ZLIB_MAGIC):
        return _unpacked(data, max_bytes, "deflate", zlib.MAX_WBITS)
    if data.startswith(_ZSTD_MAGIC):
        raise bad_input("the content-encoding zstd is not supported: send gzip, deflate or no encoding")
    return data


class Validator:
    """Validates documents against one schema. Thread-safe."""

    def __init__(self, schema: Schema) -> None:
        """Compile `schema`: JSON Schema, draft 2020-12, without $ref, plus the keyword `maxDepth`."""
        self._schema = schema
        self._names = frozenset(field_names(schema))
        self._validator = jsonschema_rs.Draft202012Validator(dict(schema), keywords={"maxDepth": _MaxDepth})

    def problems(self, document: Mapping[str, Any]) -> list[Problem]:
        """Return at most MAX_PROBLEMS errors as clauses without a full stop, then "and more" if there are others."""
        return [] if self._validator.is_valid(document) else first_problems(map(self._problem, self._errors(document)))

    def _errors(self, document: Mapping[str, Any]) -> list[jsonschema_rs.ValidationError]:
        """Return all errors of a small document; for a large one, the first error and the errors near its beginning."""
        room = iter(range(_MAX_ITEMS))
        errors = list(self._validator.iter_errors(beginning(document, self._names, room)))
        if next(room, None) is not None:
            return errors
        try:
            self._validator.validate(document)
        except jsonschema_rs.ValidationError as first:
            errors.insert(0, first)
        return errors

    def _problem(self, error: jsonschema_rs.ValidationError) -> Problem:
        path = _path(error.instance_path)
        describe = _SENTENCES.get(error.kind.name)
        if describe is None:
            return Problem(path, f"'{path}' {error.message}")
        keyword = self._keyword(error.schema_path)
        clause = describe(path, error.instance, keyword)
        # The path of a missing field is that of its object plus its name.
        return Problem(
            f"{path.rstrip('/')}/{error.kind.as_dict()['property']}" if error.kind.name == "required" else path,
            clause,
            plain_clause(error.kind.name, path, error.instance, keyword, type_name(error.instance)),
        )

    def _keyword(self, path: list[str | int]) -> Any:
        """Return the schema's value of the keyword that failed; for a key that is not allowed, the allowed patterns."""
        value: Any = self._schema
        for part in [*path[:-1], "patternProperties"] if path[-1] == "additionalProperties" else path:
            value = value[part]
        return value


def first_problems(problems: Iterable[Problem]) -> list[Problem]:
    """Return the first MAX_PROBLEMS without duplicates, then "and more" if there are others."""
    found: list[Problem] = []
    for problem in problems:
        if problem in found:
            continue
        if len(found) == MAX_PROBLEMS:
            return [*found, Problem("/", "and more")]
        found.append(problem)
    return found


class _MaxDepth:
    """Implements the keyword `maxDepth` for jsonschema_rs."""

    def __init__(self, parent: Mapping[str, Any], limit: int, path: list[str | int]) -> None:
        self._limit = limit

    def validate(self, instance: object) -> None:
        if is_deeper(instance, self._limit):
            raise ValueError("nested too deeply")


def is_deeper(value: object, limit: int) -> bool:
    """Return True if arrays and objects are nested deeper than `limit`; an array of numbers has depth 1.

    Does not recurse.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return bool(level)


def type_name(value: object) -> str:
    """Return JSON Schema's name for the type of a parsed value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value), "null")


def _types(value: Any) -> str:
    types = [value] if isinstance(value, str) else [name for name in value if name != "null"]
    return " or ".join(f"'{name}'" for name in types)


def _enum(path: str, value: Any, options: Any) -> str:
    given = value if isinstance(value, str) else json.dumps(value)
    # The value may be as long as the body, so it is truncated.
    return f"enum {given:.100} not in {','.join(map(str, options))} at '{path}'"


_SENTENCES: dict[str, Callable[[str, Any, Any], str]] = {
    "type": lambda path, value, types: f"Type mismatch of '{path}', '{type_name(value)}' not in {_types(types)}",
    "required": lambda path, value, names: f"required properties at '{path}' are '{','.join(names)}'",
    "minimum": lambda path, value, limit: f"'{path}' must be >= {limit}",
    "maximum": lambda path, value, limit: f"'{path}' must be <= {limit}",
    "exclusiveMinimum": lambda path, value, limit: f"'{path}' must be > {limit}",
    "minLength": lambda path, value, limit: f"'{path}' must not be empty",
    "maxLength": lambda path, value, limit: f"'{path}' must be at most {limit} characters long",
    "minItems": lambda path, value, limit: f"'{path}' must hold at least {limit} items",
    "maxItems": lambda path, value, limit: f"'{path}' must hold at most {limit} items",
    "maxProperties": lambda path, value, limit: f"'{path}' must hold at most {limit} keys",
    "additionalProperties": lambda path, value, patterns: (
        f"'{path}' has a key that does not match {' or '.join(patterns)}"
    ),
    "maxDepth": lambda path, value, limit: f"'{path}' must be nested at most {limit} deep",
    "enum": _enum,
    "const": lambda path, value, option: _enum(path, value, [option]),
}


def _path(parts: list[str | int]) -> str:
    return "/" + "/".join(map(str, parts))


def _unpacked(data: bytes, max_bytes: int, name: str, wbits: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=wbits)
    try:
        unpacked = unpacker.decompress(data, max_bytes + 1)
    except zlib.error:
        raise bad_input(f"the body is not valid {name}") from None
    if len(unpacked) > max_bytes:
        raise ApiError(413, 3006, f"Request is too large (more than {max_bytes} bytes)")
    if not unpacker.eof:
        raise bad_input(f"the body's {name} data ends too early")
    return unpacked


def zipped(data: bytes) -> bytes:
    """Return `data` gzipped, with the fastest compression."""
    return gzip.compress(data, compresslevel=1, mtime=0)


def _parsed(data: bytes) -> object:
    try:
        text = data.decode("utf-8-sig")
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_integer, parse_float=_parse_float)
    except UnicodeDecodeError:
        raise bad_input("the body is not UTF-8, and neither gzip nor deflate") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise bad_input(f"the body is not JSON (line {error.lineno}, column {error.colno})") from None


def _too_deep() -> ApiError:
    return bad_input(f"'/' must be nested at most {MAX_DEPTH} deep")


def _refuse_constant(name: str) -> Never:
    raise bad_input(f"the body is not JSON ({name} is not a JSON number)")


def _parse_integer(digits: str) -> int | float:
    # int() raises its own error for thousands of digits. As a float, such a number fails the check of its range instead.
    return int(digits) if len(digits) <= _MAX_DIGITS else _parse_float(digits)


def _parse_float(digits: str) -> float:
    return max(-_LARGEST_NUMBER, min(_LARGEST_NUMBER, float(digits)))
