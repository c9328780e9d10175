"""Explains why llguidance, the grammar compiler, cannot enforce a JSON Schema, and finds the place in the schema."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_SHOWN = 80
# Keywords whose values are schemas, lists of schemas, and schemas by name. Other values are data.
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

# Reasons why a pattern cannot be enforced: a regular expression for the compiler's message, and the explanation.
_PATTERN_REASONS = (
    (r"look-around, including", "uses a look-ahead or look-behind, which cannot be enforced: write it without"),
    (r"backreferences are not", "uses a back-reference, which cannot be enforced: write it without"),
    (r"lookarounds not supported yet; Word", r"uses \b or \B, which cannot be enforced: write it without"),
    (
        r"lookarounds not supported yet",
        "has ^ or $ inside, which cannot be enforced: use ^ at its beginning, $ at its end",
    ),
    (r"regex parse error|invalid regex", "is not a regular expression that can be enforced"),
    (r"not disjoint", "overlaps another pattern of the same object, which cannot be enforced"),
)
_TOO_COMPLEX = re.compile(
    r"too (?:big|large|many|slow|complex)|Unable to determine|fuel exhausted|out of fuel|max is \d+|row has \d+ items|limit",
    re.IGNORECASE,
)
_Part = Mapping[str, Any]


def explained(error: str, schema: object = None) -> str:
    """Explain why a grammar cannot be enforced. Returns the end of a sentence that begins with the request's field.

    Args:
        error: The compiler's message.
        schema: The schema to which the message refers; None: the explanation contains no place in a schema.
    """
    return located(error, schema) or _general(error)


def located(error: str, schema: object) -> str | None:
    """Return an explanation that names the place in the schema, or None if the place is not found."""
    for find in (_pattern, _keywords, _named_value, _range):
        if found := find(error, schema):
            return found
    return None


def _general(error: str) -> str:
    if error == "too slow":
        return "is too complex: it takes too long to compile. Make it smaller, or its patterns simpler"
    if _TOO_COMPLEX.search(error):
        return "is too large or too complex to be enforced. Make it smaller, or its patterns simpler"
    if "NoExtension" in error or "Unsatisfiable" in error:
        return f"allows no document at all{_detail(error)}"
    lines = error.strip().splitlines()
    reason = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    return f"cannot be enforced: {(reason or (lines or [''])[0])[:300]}"


def _detail(error: str) -> str:
    _, separator, detail = error.partition("Unsatisfiable schema: ")
    return f": {detail.splitlines()[0][:200]}" if separator and detail else ""


def _pattern(error: str, schema: object) -> str | None:
    """Explain the pattern that the message quotes; the longest one if it quotes several patterns of the schema."""
    reason = next((ours for words, ours in _PATTERN_REASONS if re.search(words, error)), None)
    if reason is None:
        return None
    found = [(path, pattern) for path, pattern in _patterns(schema) if pattern and _quotes(error, pattern)]
    if not found:
        return None
    path, pattern = max(found, key=lambda item: len(item[1]))
    return f"has a pattern at {_path(path)} that {reason} ({_shown(pattern)})"


def _quotes(error: str, pattern: str) -> bool:
    # The message separates the lines of a pattern, and a Lark grammar escapes the slashes of a pattern.
    first = pattern.removeprefix("^").removesuffix("$").splitlines() or [""]
    return pattern in error or (len(first[0]) > 0 and first[0].replace("/", "\\/") in error)


def _patterns(schema: object) -> Iterator[tuple[str, str]]:
    for path, part in _parts(schema):
        if isinstance(part.get("pattern"), str):
            yield f"{path}/pattern", part["pattern"]
        named = part.get("patternProperties")
        for name in named if isinstance(named, dict) else ():
            yield f"{path}/patternProperties/{_escaped(name)}", name


def _keywords(error: str, schema: object) -> str | None:
    """Explain keywords that the compiler does not implement."""
    if match := re.search(r"Unimplemented keys?: \[([^\]]*)\]", error):
        names = re.findall(r'"([^"]+)"', match.group(1))
        places = [path for path, part in _parts(schema) if all(name in part for name in names)]
        listed = " and ".join(f"'{name}'" for name in names)
        return f"has {listed} at {_path(places[0])}, which cannot be enforced" if places else None
    for words, names in (
        ("oneOf constraints are not supported", ["oneOf"]),
        ("min/maxProperties only supported", ["minProperties", "maxProperties"]),
    ):
        if words in error:
            for path, part in _parts(schema):
                if found := [name for name in names if name in part]:
                    more = ": use 'anyOf'" if found == ["oneOf"] else " unless all properties are required"
                    return f"has '{found[0]}' at {_path(path)}, which cannot be enforced{more}"
    return None


def _named_value(error: str, schema: object) -> str | None:
    """Explain a value that the message quotes: an unknown format or type, an unresolved reference, or a wrong value."""
    for words, keyword, sentence in (
        (r"Unknown format: (.+)", "format", "the format {value} at {path}, which cannot be enforced"),
        (r"Invalid type: (.+)", "type", "the type {value} at {path}, which does not exist"),
        (r"Pointer '(.+)' does not exist", "$ref", "a reference to {value} at {path}, and nothing is there"),
        (
            r"Resource '(.+?)' is not present",
            "$ref",
            "a reference to {value} at {path}; only references within it work",
        ),
        (r"Expected .+ for '(\w+)', got", None, "a wrong value at {path}"),
    ):
        if match := re.search(words, error):
            value = match.group(1).splitlines()[0]
            for path, part in _parts(schema):
                key = keyword or value
                given = part.get(key)
                if key in part and (keyword is None or _names(given, value)):
                    text = sentence.format(value=_shown(str(given)), path=_path(f"{path}/{key}"))
                    return f"has {text}{'' if keyword else f' ({_detail_of(error)})'}"
    return None


def _names(given: object, value: str) -> bool:
    return isinstance(given, str | list) and (given == value or value in given or str(given).removeprefix("#") == value)


def _detail_of(error: str) -> str:
    return error.strip().splitlines()[0][:200]


def _range(error: str, schema: object) -> str | None:
    """Explain limits that contradict each other."""
    low_and_high: tuple[tuple[str, str, str], ...] = (
        ("minimum", "maximum", r"minimum .*greater than maximum"),
        ("minLength", "maxLength", r"minLength .*greater than maxLength"),
        ("minItems", "maxItems", r"minItems .*greater than maxItems"),
    )
    for low, high, words in low_and_high:
        if re.search(words, error):
            for path, part in _parts(schema):
                if _is_empty(part.get(low), part.get(high)):
                    return f"allows no value at {_path(path)}: '{low}' is greater than '{high}'"
    if re.search(r"Failed to generate regex for (integer|float) range", error):
        limits = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        for path, part in _parts(schema):
            if any(_is_huge(part.get(name)) for name in limits):
                return f"has a limit at {_path(path)} that is too large or too precise to be enforced"
    return None


def _is_empty(low: object, high: object) -> bool:
    return isinstance(low, int | float) and isinstance(high, int | float) and low > high


def _is_huge(value: object) -> bool:
    return isinstance(value, int | float) and (abs(value) >= 2**53 or len(repr(value)) > 12)


def _parts(schema: object) -> Iterator[tuple[str, _Part]]:
    """Yield a schema and every schema within it, each with its path, outer schemas first."""
    waiting: list[tuple[str, object]] = [("", schema)]
    while waiting:
        path, part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        yield path, part
        inner = [(f"/{key}", part.get(key)) for key in _SCHEMAS]
        for key in _LISTS:
            if isinstance(items := part.get(key), list):
                inner += [(f"/{key}/{index}", item) for index, item in enumerate(items)]
        for key in _NAMED:
            if isinstance(named := part.get(key), dict):
                inner += [(f"/{key}/{_escaped(name)}", item) for name, item in named.items()]
        waiting += [(path + step, item) for step, item in reversed(inner)]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _path(path: str) -> str:
    return path[:300] or "its top level"


def _shown(text: str) -> str:
    short = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
    return json.dumps(short, ensure_ascii=False)
