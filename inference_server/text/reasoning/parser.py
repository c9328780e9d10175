"""Splits a reply's text into thoughts and content, incrementally.

The result does not depend on the lengths of the deltas. White space around the thoughts is part neither of the thoughts
nor of the content after them. Does not depend on a tokenizer, an engine or gRPC.
"""

import json
import re
from collections.abc import Iterator
from typing import Literal, Protocol

from inference_server.text.detokenizer import overlap
from inference_server.text.reasoning.formats import ReasoningFormat

Piece = tuple[bool, str]  # True for thoughts, False for content; and the text
Phase = Literal["undecided", "thinking", "gap", "content"]

# Length in characters. A shorter beginning of a marker at the end of a reply is more probably text.
_MIN_HALF_MARKER = 2
_HEADER = re.compile(r"\s*(?:<\||to=)")  # beginning of a header after the role
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")


class ThoughtParser(Protocol):
    """Incremental parser of one reply."""

    phase: Phase  # the part of the reply at the end of the text so far

    @property
    def is_finished(self) -> bool:
        """True if all text from here on is content."""

    def push(self, text: str) -> list[Piece]:
        """Append text of the reply. Returns the pieces that are final after it."""

    def finish(self) -> list[Piece]:
        """End the reply. Returns the remaining pieces, without an incomplete marker."""


def thought_parser(reasoning: ReasoningFormat, *, is_open: bool, is_continued: bool = False) -> ThoughtParser:
    """Return a parser for a new reply.

    Args:
        reasoning: Format of the thoughts.
        is_open: True if the prompt has begun the thoughts.
        is_continued: True if the reply continues thoughts in the prompt. White space at the beginning then belongs to
            the thoughts.
    """
    if reasoning.has_channels:
        return ChannelParser(is_continued=is_continued)
    return MarkerParser(reasoning, is_open=is_open, is_continued=is_continued)


class MarkerParser:
    """Parser for thoughts between two markers, at the beginning of the reply."""

    def __init__(self, reasoning: ReasoningFormat, *, is_open: bool, is_continued: bool = False) -> None:
        """Create a parser; for the arguments see `thought_parser`."""
        self._start, self._end = reasoning.start, reasoning.end
        self.phase: Phase = "thinking" if is_open else "undecided"
        self._has_thoughts = is_continued  # while False, white space is dropped
        self._held = ""

    @property
    def is_finished(self) -> bool:
        """True if all text from here on is content."""
        return self.phase == "content"

    def push(self, text: str) -> list[Piece]:
        """Append text of the reply. Returns the pieces that are final after it."""
        held = self._held + text
        self._held = ""
        pieces: list[Piece] = []
        if self.phase == "undecided":
            held = self._without_start(held)
        if self.phase == "thinking":
            thought, held = self._thought(held)
            if thought:
                pieces.append((True, thought))
        if self.phase == "gap" and (held := held.lstrip()):
            self.phase = "content"
        if self.phase == "content" and held:
            pieces.append((False, held))
        return pieces

    def finish(self) -> list[Piece]:
        """End the reply. Returns the remaining pieces, without an incomplete marker."""
        held, self._held = self._held, ""
        if self.phase == "undecided":
            return [(False, held)] if held and len(held.strip()) < _MIN_HALF_MARKER else []
        marker = self._end if self._has_thoughts or self._end.startswith(held.strip()) else self._start
        if self.phase != "thinking" or overlap(held, marker) >= _MIN_HALF_MARKER:
            return []
        held = held.rstrip() if self._has_thoughts else held.strip()
        return [(True, held)] if held else []

    def _without_start(self, held: str) -> str:
        """Decide whether thoughts begin. Returns the text that follows the marker, if any; empty while undecided."""
        begun = held.lstrip()
        if begun.startswith(self._start):
            self.phase = "thinking"
            return begun[len(self._start) :]
        if self._start.startswith(begun):
            self._held = held
            return ""
        self.phase = "content"
        return held

    def _thought(self, held: str) -> tuple[str, str]:
        """Return the thoughts that are final, and the text after the end marker, if the marker is complete."""
        if not self._has_thoughts:
            held = held.lstrip()
            # Some models repeat the marker that the prompt ended with.
            while held.startswith(self._start):
                held = held[len(self._start) :].lstrip()
            if self._start.startswith(held):
                self._held = held
                return "", ""
        position = held.find(self._end)
        if position >= 0:
            self.phase = "gap"
            return held[:position].rstrip(), held[position + len(self._end) :]
        thought = held[: len(held) - overlap(held, self._end)].rstrip()
        self._held = held[len(thought) :]
        self._has_thoughts = self._has_thoughts or bool(thought)
        return thought, ""


class ChannelParser:
    """Parser for harmony: messages with a header, which names the channel, and a body.

    The channel `analysis` has thoughts. A message with a recipient is a tool call, and becomes a call in hermes format.
    The bodies of all other messages are content.
    """

    def __init__(self, *, is_continued: bool = False) -> None:
        """Create a parser for a new reply. The reply begins within a header, or within thoughts if `is_continued`."""
        self._held = ""
        self._body: Literal["thoughts", "content", "call"] | None = None  # None: within a header
        self._call = ""
        self._has_messages = is_continued
        self.phase: Phase = "undecided"
        if is_continued:
            self._body, self.phase = "thoughts", "thinking"

    @property
    def is_finished(self) -> bool:
        """False: thoughts may follow content."""
        return False

    def push(self, text: str) -> list[Piece]:
        """Append text of the reply. Returns the pieces that are final after it."""
        self._held += text
        return _joined(self._pieces())

    def finish(self) -> list[Piece]:
        """End the reply. Returns the remaining pieces, without an incomplete marker."""
        held, self._held = self._held, ""
        if self._body is not None:
            return _joined(self._end_body(held))
        # A reply without messages is text of a model that does not write messages, unless it is an incomplete header.
        is_text = not self._has_messages and not _HEADER.match(held)
        return [(False, held)] if is_text and held else []

    def _pieces(self) -> Iterator[Piece]:
        while True:
            if self._body is None:
                header, found, rest = self._held.partition("<|message|>")
                if not found:
                    return
                self._held = rest
                self._begin_body(header)
            ends = [(at, end) for end in ("<|end|>", "<|call|>", "<|start|>") if (at := self._held.find(end)) >= 0]
            if not ends:
                keep = max(overlap(self._held, end) for end in ("<|end|>", "<|call|>", "<|start|>"))
                shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                yield from self._part(shown)
                return
            at, end = min(ends)
            body, self._held = self._held[:at], self._held[at + len(end) :]
            yield from self._end_body(body)

    def _begin_body(self, header: str) -> None:
        self._has_messages = True
        if recipient := _RECIPIENT.search(header):
            self._body, self._call = "call", recipient.group(1)
            self._arguments = ""
        else:
            self._body = "thoughts" if "analysis" in header else "content"
        self.phase = "thinking" if self._body == "thoughts" else "content"

    def _part(self, text: str) -> Iterator[Piece]:
        if self._body == "call":
            self._arguments += text
        elif text:
            yield self._body == "thoughts", text

    def _end_body(self, text: str) -> Iterator[Piece]:
        yield from self._part(text)
        if self._body == "call":
            call = f'<tool_call>\n{{"name": {json.dumps(self._call, ensure_ascii=False)}, "arguments": '
            yield False, call + (f"{self._arguments}}}\n</tool_call>" if _is_json(self._arguments) else self._arguments)
        self._body = None
        self.phase = "undecided"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _joined(pieces: Iterator[Piece]) -> list[Piece]:
    """Join neighbours of the same kind."""
    joined: list[Piece] = []
    for is_thought, text in pieces:
        if joined and joined[-1][0] == is_thought:
            joined[-1] = is_thought, joined[-1][1] + text
        else:
            joined.append((is_thought, text))
    return joined
