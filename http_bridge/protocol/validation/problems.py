"""Clauses about invalid fields, in Workers AI's wording and in plain words.

Clients parse Workers AI's wording, which documents.py writes. The plain words are for people: they are in a response header,
which the playground and the command line show.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

_ARTICLES = {"array": "a list", "object": "an object", "integer": "a whole number", "null": "null"}
_MAX_SHOWN = 100
_BODY = "the body"


class Problem(str):
    """A clause without a full stop about an invalid field.

    Attributes:
        path: The field, such as /messages/0/content.
        plain: The clause in plain words.
    """

    path: str
    plain: str

    def __new__(cls, path: str, clause: str, plain: str | None = None) -> "Problem":
        """Return the clause with its path. Without `plain`, only the path in the clause is written in plain words."""
        problem = super().__new__(cls, clause)
        problem.path = path
        problem.plain = clause.replace(f"'{path}'", field_name(path)) if plain is None else plain
        return problem

    @property
    def param(self) -> str | None:
        """The path in OpenAI's notation, such as messages[0].content; None for the whole body."""
        return _openai_path(self.path) or None


def plain_sentence(clause: str) -> str:
    """Return a clause as a sentence. A field's name at the start is not capitalized."""
    return f"T{clause[1:]}." if clause.startswith(_BODY) else f"{clause}."


def plain_clauses(problems: Iterable[Problem]) -> str:
    """Return the clauses of several problems in plain words, as one clause."""
    return "; ".join(problem.plain for problem in problems)


def field_name(path: str) -> str:
    """Return the name of a field for people: messages[0].content for /messages/0/content; "the body" for the whole body."""
    return _openai_path(path) or _BODY


def _openai_path(path: str) -> str:
    return re.sub(r"/(\d+)(?=/|$)", r"[\1]", path).strip("/").replace("/", ".")


def plain_clause(kind: str, path: str, value: Any, keyword: Any, value_type: str) -> str | None:
    """Return a clause without a full stop about a field that its schema refuses; None for an unknown keyword.

    Args:
        kind: The keyword of JSON Schema, such as maximum.
        path: The field, such as /messages/0/content.
        value: The field's value.
        keyword: The schema's value of the keyword.
        value_type: JSON's name of the value's type.
    """
    describe = _CLAUSES.get(kind)
    return None if describe is None else f"{field_name(path)} {describe(value, keyword, value_type)}"


def _types(value: Any, types: Any, value_type: str) -> str:
    names = [types] if isinstance(types, str) else [name for name in types if name != "null"]
    wanted = " or ".join(_ARTICLES.get(name, f"a {name}") for name in names)
    return f"must be {wanted}, not {_ARTICLES.get(value_type, f'a {value_type}')}"


def _enum(value: Any, options: Any, value_type: str) -> str:
    given = value if isinstance(value, str) else json.dumps(value)
    return f"must be {', '.join(map(str, options))}, not {given[:_MAX_SHOWN]}"


_CLAUSES: dict[str, Callable[[Any, Any, str], str]] = {
    "type": _types,
    "required": lambda value, names, kind: f"needs {' and '.join(name for name in names if name not in value)}",
    "minimum": lambda value, limit, kind: f"must be at least {limit}",
    "maximum": lambda value, limit, kind: f"must be at most {limit}",
    "exclusiveMinimum": lambda value, limit, kind: f"must be above {limit}",
    "minLength": lambda value, limit, kind: "must not be empty",
    "minItems": lambda value, limit, kind: f"must have at least {limit} items" if limit != 1 else "must not be empty",
    "maxItems": lambda value, limit, kind: f"must have at most {limit} items",
    "maxProperties": lambda value, limit, kind: f"must have at most {limit} keys",
    "enum": _enum,
    "const": lambda value, option, kind: _enum(value, [option], kind),
}
