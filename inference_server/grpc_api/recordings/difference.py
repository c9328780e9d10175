"""Finds the recording that is most similar to a request without a recording, and the first difference between them."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inference_server.grpc_api.recordings.canonical import JsonObject, prompt_text

# Longest excerpt of a value in an error, and its part before the first differing character, in characters.
_EXCERPT, _BEFORE = 60, 20
# Largest number of equally near recordings whose prompts are compared, and compared length of a prompt in characters.
_MAX_COMPARED, _COMPARED_LENGTH = 200, 500
_NOTHING = "nothing"
_PLAIN_NAME = re.compile(r"[\w$-]+")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference between a request and a recorded one.

    Attributes:
        field: Path of the field, for example `chat.turns[0].content`.
        requested: Its value in the request, or an excerpt of it, as JSON; "nothing" if the request does not have it.
        recorded: Its value in the recorded request, in the same form.
    """

    field: str
    requested: str
    recorded: str


def nearest(request: JsonObject, recorded: Iterable[JsonObject]) -> int | None:
    """Return the index of the recorded request with the fewest differing fields; None if there are no recorded ones.

    Among requests with equally few differing fields, the prompt most similar to that of `request` decides.
    """
    wanted, candidates = set(_leaves(request).items()), list(recorded)
    distances = [len(wanted ^ set(_leaves(each).items())) for each in candidates]
    if not distances:
        return None
    least = min(distances)
    best = [index for index, distance in enumerate(distances) if distance == least][:_MAX_COMPARED]
    matcher = difflib.SequenceMatcher(autojunk=False, b=prompt_text(request)[:_COMPARED_LENGTH])

    def similarity(index: int) -> float:
        matcher.set_seq1(prompt_text(candidates[index])[:_COMPARED_LENGTH])
        return matcher.quick_ratio()

    return max(best, key=similarity)


def first_difference(request: JsonObject, recorded: JsonObject) -> Difference:
    """Return the first field, in the order of the request, that differs. There must be one."""
    wanted, found = _leaves(request), _leaves(recorded)
    field = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
    return Difference(field, *_excerpts(wanted.get(field), found.get(field)))


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    """Return the JSON of every number, string, boolean, null, and empty array or object, by its path.

    Names that do not match _PLAIN_NAME are quoted in a path, so that different values never have the same path.
    """
    if isinstance(value, dict) and value:
        parts = [(_joined(path, name), item) for name, item in value.items()]
    elif isinstance(value, list) and value:
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {path: json.dumps(value, ensure_ascii=False)}
    return {name: leaf for part, item in parts for name, leaf in _leaves(item, part).items()}


def _joined(path: str, name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name):
        return f"{path}[{json.dumps(name, ensure_ascii=False)}]"
    return f"{path}.{name}" if path else name


def _excerpts(*values: str | None) -> tuple[str, str]:
    """Return both values, cut to the surroundings of their first difference."""
    first, second = (value or "" for value in values)
    same = next(
        (place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )
    start = max(0, same - _BEFORE) if max(len(first), len(second)) > _EXCERPT else 0
    shown = [_NOTHING if value is None else _excerpt(value, start) for value in values]
    return shown[0], shown[1]


def _excerpt(value: str, start: int) -> str:
    end = start + _EXCERPT
    return ("…" if start else "") + value[start:end] + ("…" if len(value) > end else "")
