"""The text stream of a reasoning model's reply: thoughts without their markers, then content with stop strings applied.

The engine handles thoughts and content as one text, so that its deltas need only one. `ThoughtfulReplyText.changes`
contains the positions at which thoughts change to content or back. `with_thoughts` divides the deltas there.
"""

from collections.abc import AsyncIterator
from collections.abc import Sequence as Items

from inference_server.generation import Delta, Event
from inference_server.text.detokenizer import Detokenizer, StopStrings
from inference_server.text.reasoning.parser import Piece, ThoughtParser


class ThoughtfulReplyText:
    """Text stream of one sequence (implements generation.TextStream). Stop strings do not match within thoughts.

    Attributes:
        changes: Positions in the text, in characters, at which thoughts change to content or back. The text counts as
            thoughts at first, so the first position is 0 if it begins with content. A position is added before `push`
            or `finish` returns the text that follows it, so that another thread can divide all text that it receives.
        num_reasoning_tokens: Tokens of the thoughts so far, including their markers.
    """

    def __init__(self, detokenizer: Detokenizer, stop_strings: Items[str], parser: ThoughtParser) -> None:
        """Create a stream for a new reply."""
        self._detokenizer = detokenizer
        self._stop_strings = StopStrings(stop_strings)
        self._parser = parser
        self._is_content = False  # True if no thoughts can follow, and the parser is no longer needed
        self._length = 0
        self._num_undecided = 0
        self.changes: list[int] = []
        self.num_reasoning_tokens = 0

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stop_strings.found

    def push(self, token_id: int) -> str:
        """Append a token. Returns the text that can be sent now; often empty."""
        text = self._detokenizer.push(token_id)
        if self._is_content:
            return self._stop_strings.push(text)
        parser = self._parser
        was_thinking = parser.phase == "thinking"
        pieces = parser.push(text)
        if was_thinking and parser.phase == "thinking" and not self.changes and len(pieces) < 2:
            # Almost every token of the thoughts takes this path.
            self.num_reasoning_tokens += 1
            shown = pieces[0][1] if pieces else ""
            self._length += len(shown)
            return shown
        self._count(was_thinking, pieces)
        shown = self._joined(pieces)
        # A possible stop string may hold back all content so far. The change to content is then not in `changes` yet.
        self._is_content = parser.is_finished and len(self.changes) % 2 == 1
        return shown

    def finish(self) -> str:
        """Return the rest of the text; empty after a stop string."""
        if self.stop_string is not None:
            return ""
        text = self._detokenizer.finish()
        if self._is_content:
            last = self._stop_strings.push(text)
        else:
            last = self._joined([*self._parser.push(text), *self._parser.finish()])
        if self.stop_string is not None:
            return last
        return last + self._joined([(False, self._stop_strings.finish())], is_checked=True)

    def _count(self, was_thinking: bool, pieces: list[Piece]) -> None:
        """Count the newest token if it belongs to thoughts.

        Tokens that were pushed while the parser was undecided are counted if thoughts then begin.
        """
        phase = self._parser.phase
        if was_thinking or phase == "thinking" or any(is_thought for is_thought, _ in pieces):
            self.num_reasoning_tokens += 1 + self._num_undecided
            self._num_undecided = 0
        elif phase == "undecided":
            self._num_undecided += 1
        else:
            self._num_undecided = 0

    def _joined(self, pieces: list[Piece], *, is_checked: bool = False) -> str:
        """Return the pieces' text, and record where the kind changes.

        `is_checked`: True if stop strings were already applied to the pieces.
        """
        shown = ""
        for is_thought, text in pieces:
            if not is_thought and not is_checked:
                text = self._stop_strings.push(text)
            if text:
                if is_thought == bool(len(self.changes) % 2):
                    self.changes.append(self._length)
                self._length += len(text)
                shown += text
            if self.stop_string is not None:
                break
        return shown


async def with_thoughts(events: AsyncIterator[Event], text: ThoughtfulReplyText) -> AsyncIterator[Event]:
    """Yield the same events with thoughts in `Delta.reasoning` instead of `Delta.text`.

    Args:
        events: Events of one reply.
        text: The text stream of that reply.
    """
    changes = text.changes
    num_passed = 0  # changes before `position`: an even number means thoughts
    position = 0
    async for event in events:
        if not isinstance(event, Delta) or not event.text:
            yield event
            continue
        rest, event.text = event.text, ""
        while num_passed < len(changes) and changes[num_passed] < position + len(rest):
            length = changes[num_passed] - position
            if length:
                part, rest = rest[:length], rest[length:]
                if num_passed % 2:  # content before thoughts: a delta has them in the other order
                    yield Delta(part, 0, reasoning=event.reasoning, last_token=event.last_token)
                    event.reasoning = ""
                else:
                    event.reasoning = part
            position += length
            num_passed += 1
        position += len(rest)
        if num_passed % 2:
            event.text = rest
        else:
            event.reasoning = rest
        yield event
