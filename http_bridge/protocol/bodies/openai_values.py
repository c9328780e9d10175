"""Removes the values with which OpenAI's clients mark a field as unset, such as -1 for max_tokens."""

from collections.abc import Mapping
from typing import Any

from tailrace_shared.request_fields import SAMPLING_FIELDS

Document = Mapping[str, Any]

# Numbers that mean "unset", as null does. OpenAI's own ranges do not contain them, except -1 for a seed.
_UNSET: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "top_k", "n", "best_of"), (-1, 0)),
    "seed": (-1,),
}
_EMPTY_TEXT = {field.name for field in SAMPLING_FIELDS} | set(_UNSET) | {"logit_bias"}


def without_unset(document: Document) -> dict[str, Any]:
    """Return the fields of a body that have a value. Empty strings in `stop` are left out."""
    kept = {name: value for name, value in document.items() if not _is_unset(name, value)}
    if isinstance(stop := kept.get("stop"), list) and "" in stop:
        kept["stop"] = [text for text in stop if text != ""]
    return kept


def _is_unset(name: str, value: Any) -> bool:
    if value is None:
        return True
    if value == "":
        return name in _EMPTY_TEXT or name == "stop"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and value in _UNSET.get(name, ())
