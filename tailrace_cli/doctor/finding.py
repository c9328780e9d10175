"""The result of one check of `tailrace doctor`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report.

    Attributes:
        is_ok: True if the check passed, False if the user must change something, None for information.
        text: Description of the state.
        advice: A sentence about the next step or the consequence; empty: none.
    """

    is_ok: bool | None
    text: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]
