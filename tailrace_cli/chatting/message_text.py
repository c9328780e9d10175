"""The text of a message as a user types it: prompts, completions, and the quotation marks around several lines."""

from collections.abc import Callable, Sequence

QUOTES = '"""'
PROMPT, CONTINUATION = "> ", ". "
# Returns the words that may replace the last word of a line.
Complete = Callable[[str], Sequence[str]]


def unquoted(text: str) -> str:
    """Return a message without its quotation marks and surrounding spaces."""
    text = text.strip()
    if text.startswith(QUOTES):
        text = text.removeprefix(QUOTES).removesuffix(QUOTES).strip()
    return text


def is_open(text: str) -> bool:
    """Return True if the message begins with three quotation marks and does not end with them yet."""
    text = text.strip()
    return text.startswith(QUOTES) and not (len(text) >= 2 * len(QUOTES) and text.endswith(QUOTES))
