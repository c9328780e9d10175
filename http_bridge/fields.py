"""Reads the fields of a JSON object one by one and collects what is wrong with them.

Knows JSON's types and paths into a document; knows nothing of which fields there are.
"""

from collections.abc import Mapping
from typing import Any

# A body can hold a million wrong fields; its author reads a few, and nobody else shall wait for the rest.
MAX_PROBLEMS = 8


class TooManyProblems(Exception):
    """One problem more than MAX_PROBLEMS was found; reading on is of no use."""


class Fields:
    """The fields of one JSON object. Each read checks the value and writes what is wrong with it into `problems`.

    A wrong value reads as None, like an absent one or null. Of a value that is no object, every field is absent.
    """

    def __init__(self, value: object, path: str, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        self.is_object = isinstance(value, dict)
        self._values: Mapping[str, Any] = value if isinstance(value, dict) else {}

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def complain(self, problem: str) -> None:
        """Note a problem. Raises TooManyProblems when there are enough."""
        if len(self.problems) == MAX_PROBLEMS:
            raise TooManyProblems
        self.problems.append(problem)

    def boolean(self, name: str) -> bool:
        """True or false; an absent field is false."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            self._complain_type(f"{self.path}/{name}", value, "boolean")
        return value is True

    def number(self, name: str, *, minimum: float, maximum: float) -> float | None:
        """A number from `minimum` to `maximum`."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._complain_type(f"{self.path}/{name}", value, "number")
            return None
        return value if self._check_range(name, value, minimum, maximum) else None

    def integer(self, name: str, *, minimum: int, maximum: int | None = None) -> int | None:
        """A whole number from `minimum` to `maximum`; 5.0 is one, as in JSON Schema."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            self._complain_type(f"{self.path}/{name}", value, "integer")
            return None
        return int(value) if self._check_range(name, value, minimum, maximum) else None

    def text(self, name: str, *, minimum: int = 0, maximum: int | None = None, expected: str = "string") -> str | None:
        """A string of `minimum` to `maximum` characters; `expected` is told to who sends something else."""
        value = self.get(name)
        return None if value is None else self._check_text(value, f"{self.path}/{name}", minimum, maximum, expected)

    def texts(self, name: str, *, minimum: int = 0, maximum: int | None = None) -> tuple[str, ...]:
        """The strings of an array, each of `minimum` to `maximum` characters."""
        path = f"{self.path}/{name}"
        values = enumerate(self.array(name) or ())
        checked = [self._check_text(value, f"{path}/{index}", minimum, maximum, "string") for index, value in values]
        return tuple(text for text in checked if text is not None)

    def array(self, name: str) -> list[Any] | None:
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            self._complain_type(f"{self.path}/{name}", value, "array")
        return value if isinstance(value, list) else None

    def objects(self, name: str) -> list["Fields"]:
        """The objects of an array."""
        values = enumerate(self.array(name) or ())
        return [self._nested(value, f"{self.path}/{name}/{index}") for index, value in values]

    def nested(self, name: str) -> "Fields":
        """A nested object; an absent one has no fields."""
        value = self.get(name)
        return self._nested({} if value is None else value, f"{self.path}/{name}")

    def _nested(self, value: Any, path: str) -> "Fields":
        if not isinstance(value, dict):
            self._complain_type(path, value, "object")
        return Fields(value, path, self.problems)

    def _check_text(self, value: Any, path: str, minimum: int, maximum: int | None, expected: str) -> str | None:
        if not isinstance(value, str):
            self._complain_type(path, value, expected)
        elif len(value) < minimum:
            self.complain(f"'{path}' must not be empty")
        elif maximum is not None and len(value) > maximum:
            self.complain(f"'{path}' must be at most {maximum} characters long")
        elif not _is_unicode(value):
            self.complain(f"'{path}' holds half of a surrogate pair, which is no character")
        else:
            return value
        return None

    def _check_range(self, name: str, value: float, minimum: float, maximum: float | None) -> bool:
        if value < minimum:
            self.complain(f"'{self.path}/{name}' must be >= {minimum}")
            return False
        if maximum is not None and value > maximum:
            self.complain(f"'{self.path}/{name}' must be <= {maximum}")
            return False
        return True

    def _complain_type(self, path: str, value: object, expected: str) -> None:
        self.complain(f"Type mismatch of '{path}', '{type_name(value)}' not in '{expected}'")


def type_name(value: object) -> str:
    """JSON's name for the type of a parsed value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value), "null")


def _is_unicode(text: str) -> bool:
    # "\ud800" is valid JSON, but neither UTF-8 nor a protobuf message can hold it.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
