"""Resolves a model's short name, and finds the name nearest to a wrong one.

A short name consists of the last parts of a name between slashes, or is the beginning of the very last part.
"""

import difflib
from collections.abc import Iterable

_MAX_LISTED = 8  # names in the message about a name that is not unique
_MAX_COMPARED = 100  # characters of a name
_MIN_SIMILARITY = 0.6  # 0 to 1; with less, a suggestion is more often wrong than right


class Ambiguous(ValueError):
    """Several models have the short name. The message lists them."""


def long_name(name: str, names: Iterable[str]) -> str | None:
    """Return the full name of the model that `name` abbreviates; None if no model matches, or `name` is empty.

    A model with exactly this name has priority. Next is the only model whose name ends with a slash and `name`, then
    the only model whose last part begins with `name`. Case is ignored, except for the exact name.

    Args:
        name: A name as a user writes it.
        names: The names of all models.

    Raises:
        Ambiguous: Several models match equally well.
    """
    known = list(dict.fromkeys(names))
    if name in known or not name:
        return name or None
    wanted = name.lower()
    endings = [each for each in known if each.lower() == wanted or each.lower().endswith(f"/{wanted}")]
    found = endings or [each for each in known if each.lower().rpartition("/")[2].startswith(wanted)]
    if len(found) > 1:
        more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
        raise Ambiguous(f"several models are called {name}: {', '.join(found[:_MAX_LISTED])}{more}")
    return found[0] if found else None


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """Return the other name whose last part is most similar to that of `name`; None if none is similar."""
    ends: dict[str, str] = {}
    for each in names:
        if each != name:
            ends.setdefault(_end(each), each)
    found = difflib.get_close_matches(_end(name), ends, n=1, cutoff=_MIN_SIMILARITY)
    return ends[found[0]] if found else None


def _end(name: str) -> str:
    # Truncated: the time of the comparison grows with the product of both lengths, and a client chooses the name.
    return name.lower().rpartition("/")[2][:_MAX_COMPARED]
