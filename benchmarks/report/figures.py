"""Looks up single figures in the content of a results file, and formats them. Does no I/O."""

from typing import Any

NONE = "–"

Document = dict[str, Any]


def spread(document: Document, peer: str, case: str, figure: str) -> dict[str, Any] | None:
    """Return a figure's median, min, max and values of all rounds, or None if nothing was measured."""
    found: dict[str, Any] | None = document["peers"].get(peer, {}).get("cases", {}).get(case, {}).get(figure)
    return found


def median(document: Document, peer: str, case: str, figure: str) -> float | None:
    """Return a figure's median, or None if nothing was measured."""
    found = spread(document, peer, case, figure)
    return None if found is None else found["median"]


def number(value: float) -> str:
    """Format a value of 100 or more as a whole number with commas, of 10 or more with one decimal, else with two."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def streams(count: int) -> str:
    """Return "1 stream" or "8 streams"."""
    return "1 stream" if count == 1 else f"{count} streams"
