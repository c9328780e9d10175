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
        is_warning: True for information that probably requires an action of the user. The exit code stays 0.
    """

    is_ok: bool | None
    text: str
    advice: str = ""
    is_warning: bool = False

    @property
    def mark(self) -> str:
        """The word before the text in the report, of at most five letters."""
        if self.is_ok is None:
            return "WARN" if self.is_warning else ""
        return "ok" if self.is_ok else "WRONG"


Check = Callable[[], Iterator[Finding]]
