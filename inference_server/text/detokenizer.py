"""Token ids to text deltas: whole characters only, and no part of a stop string.

The decoder is passed in as a function from token ids to text; nothing here knows a tokenizer.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items

Decode = Callable[[list[int]], str]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most 4 bytes. When more tokens than this have not made one, they are no text, and are sent as they are.
_MAX_HELD_TOKENS = 8


class Detokenizer:
    """Turns one sequence's token ids into text, piece by piece: the pieces together are the text of all ids.

    A token's text depends on its neighbours: SentencePiece drops the space before the first token, and a character may
    be spread over several byte tokens. So a few tokens are decoded with and without the new one, and the difference is
    the new text. While that ends in a replacement character, a character may be incomplete and nothing is given out.
    """

    def __init__(self, decode: Decode, context_ids: Items[int] = ()) -> None:
        """`context_ids`: last tokens of a prompt whose text the new text continues; empty: it stands for itself."""
        self._decode = decode
        context = list(context_ids)
        while context and decode(context).startswith(_REPLACEMENT):
            del context[0]  # the context was cut within a character, and its rest would spoil the bytes that follow
        self._ids = context  # a few known tokens, then those not yet given out
        self._num_held = 0  # tokens in a row that may have an incomplete character at their end
        self._num_known = len(self._ids)
        self._known_text = decode(self._ids) if self._ids else ""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often empty."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith(_REPLACEMENT) and self._num_held < _MAX_HELD_TOKENS:
            self._num_held += 1
            return ""
        self._num_held = 0
        return self._give_out(text)

    def finish(self) -> str:
        """The rest, less a last character that is incomplete."""
        return self._give_out(self._decode(self._ids).rstrip(_REPLACEMENT))

    def _give_out(self, text: str) -> str:
        delta = text[len(self._known_text) :]
        if delta:
            # The tokens just given out are the context of the next: a shorter one would lose spaces.
            self._ids = self._ids[self._num_known :]
            self._num_known = len(self._ids)
            self._known_text = self._decode(self._ids)
        return delta


class StopStrings:
    """Ends a text at the stop string that is complete first, and holds back what may become one.

    What is complete first does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop_strings: Items[str]) -> None:
        self._stop_strings = stop_strings
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The part of all text so far that can be sent and was not yet. After `found`, nothing more comes."""
        if not self._stop_strings:
            return text
        held = self._held + text
        found = [
            (position + len(stop), position, stop) for stop in self._stop_strings if (position := held.find(stop)) >= 0
        ]
        if found:
            _, position, self.found = min(found)
            self._held = ""
            return held[:position]
        keep = max(overlap(held, stop) for stop in self._stop_strings)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


class ReplyText:
    """A sequence's text as it can be sent (sequence.TextStream)."""

    def __init__(self, detokenizer: Detokenizer, stop_strings: Items[str]) -> None:
        self._detokenizer = detokenizer
        self._stop_strings = StopStrings(stop_strings)

    @property
    def stop_string(self) -> str | None:
        return self._stop_strings.found

    def push(self, token_id: int) -> str:
        return self._stop_strings.push(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """The last of the text; empty after a stop string."""
        if self.stop_string is not None:
            return ""
        last = self._stop_strings.push(self._detokenizer.finish())
        return last if self.stop_string is not None else last + self._stop_strings.finish()


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins; `stop` as a whole is not in `text`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
