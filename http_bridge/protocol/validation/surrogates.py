"""Finds strings that are valid JSON and that no UTF-8 text can contain: halves of surrogate pairs."""

from collections.abc import Iterable


def path_of_surrogate(value: object) -> str | None:
    """Return the path of a string with half of a surrogate pair, or of its object if it is a key; None if there is none."""
    if isinstance(value, str):
        return None if _is_text(value) else ""
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, list):
        items = enumerate(value)
    elif isinstance(value, dict):
        if not all(map(_is_text, value)):
            return ""
        items = value.items()
    # The path is built only for a string that was found: names may be as long as the body.
    for name, item in items:
        if (rest := path_of_surrogate(item)) is not None:
            return f"/{name}{rest}"
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
