"""Converts token ids to text deltas of whole characters, without any part of a stop string.

The caller passes a function from token ids to text. Does not depend on a tokenizer.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items

from inference_server.generation import GenerationRequest

Decode = Callable[[list[int]], str]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Largest number of tokens held for an incomplete character, which has at most 4 bytes. If there are more, they are not
# text, and are sent as replacement characters.
_MAX_HELD_TOKENS = 8
# Number of prompt tokens decoded as context of a reply that continues the prompt, to keep its leading space.
_CONTEXT_TOKENS = 6


class Detokenizer:
    """Incremental decoder of one sequence: the deltas together are the text of all its ids.

    A token's text depends on its neighbours: SentencePiece drops the space before the first token, and a character may
    be spread over several byte tokens. So a few tokens are decoded with and without the new one, and the difference is
    the new text. While that text ends in a replacement character, a character may be incomplete and the delta is empty.
    """

    def __init__(self, decode: Decode, context_ids: Items[int] = ()) -> None:
        """Create a decoder for a new reply.

        Args:
            decode: Function from token ids to text.
            context_ids: Last tokens of the prompt that the text continues; empty: the text does not continue a prompt.
        """
        self._decode = decode
        context = list(context_ids)
        while context and decode(context).startswith(_REPLACEMENT):
            del context[0]  # the context begins within a character, and would change the bytes that follow
        self._ids = context  # a few context tokens with known text, then the new tokens
        self._num_held = 0  # tokens in a row that may have an incomplete character at their end
        self._num_known = len(self._ids)
        self._known_text = decode(self._ids) if self._ids else ""

    def push(self, token_id: int) -> str:
        """Append a token. Returns the text that is now final; often empty."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text[-1:] == _REPLACEMENT and self._num_held < _MAX_HELD_TOKENS:
            self._num_held += 1
            return ""
        self._num_held = 0
        return self._release(text)

    def finish(self) -> str:
        """Return the rest of the text, without an incomplete last character."""
        return self._release(self._decode(self._ids).rstrip(_REPLACEMENT))

    def _release(self, text: str) -> str:
        delta = text[len(self._known_text) :]
        if delta:
            # These tokens are the context of the next one: a shorter context would lose spaces.
            self._ids = self._ids[self._num_known :]
            self._num_known = len(self._ids)
            self._known_text = self._decode(self._ids)
        return delta


class StopStrings:
    """Filter that ends a text at the first complete stop string, and holds back a possible beginning of one.

    The result does not depend on the lengths of the deltas.
    """

    def __init__(self, stop_strings: Items[str]) -> None:
        """Create a filter for these stop strings, none of which may be empty."""
        self._stop_strings = stop_strings
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Append text. Returns the unsent text up to a stop string or a possible beginning of one, else all of it."""
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
        """Return the text that was held back and is not part of a stop string."""
        held, self._held = self._held, ""
        return held


class ReplyText:
    """Text stream of one sequence, with stop strings applied (implements generation.TextStream)."""

    num_reasoning_tokens = 0

    def __init__(self, detokenizer: Detokenizer, stop_strings: Items[str]) -> None:
        """Create a stream that filters the detokenizer's text by the stop strings."""
        self._detokenizer = detokenizer
        self._stop_strings = StopStrings(stop_strings)
        self._has_stop_strings = bool(stop_strings)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stop_strings.found

    def push(self, token_id: int) -> str:
        """Append a token. Returns the text that can be sent now; often empty."""
        text = self._detokenizer.push(token_id)
        return self._stop_strings.push(text) if self._has_stop_strings else text

    def finish(self) -> str:
        """Return the rest of the text; empty after a stop string."""
        if self.stop_string is not None:
            return ""
        last = self._stop_strings.push(self._detokenizer.finish())
        return last if self.stop_string is not None else last + self._stop_strings.finish()


def reply_detokenizer(decode: Decode, request: GenerationRequest) -> Detokenizer:
    """Return the detokenizer of a request's reply, with the prompt's end as context if the reply continues it."""
    context = request.prompt_ids[-_CONTEXT_TOKENS:] if request.continues_prompt else ()
    return Detokenizer(decode, context)


def reply_text(decode: Decode, request: GenerationRequest) -> ReplyText:
    """Return the text stream of a request's reply, with the request's stop strings."""
    return ReplyText(reply_detokenizer(decode, request), request.stop)


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`.

    `text` must not contain the whole of `stop`.
    """
    # This runs for every token of a reply with stop strings or thoughts. Most texts lack the first character of `stop`.
    position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while position >= 0:
        if stop.startswith(text[position:]):
            return len(text) - position
        position = text.find(stop[0], position + 1)
    return 0
