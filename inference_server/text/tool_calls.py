"""Finds tool calls in a reply's text and replaces their text with call events.

A call that names no tool of the request, or that cannot be read, stays text if the model itself ended the reply. If the
reply was cut (max_tokens, a time limit, a stop string), an incomplete call is left out. Does not depend on a tokenizer,
an engine or gRPC.
"""

import json
import random
import re
import string
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any, Literal

from inference_server.generation import Completed, Delta, Event, FinishReason, ToolCall
from inference_server.text.detokenizer import overlap
from inference_server.text.tool_formats import MARKERS, Tool, ToolFormat
from inference_server.text.tools.reading import is_open, read_calls

# Place of calls in a reply: after any text; only from the beginning (otherwise the reply is a document); calls alone.
Place = Literal["anywhere", "beginning", "only"]

# Mistral's chat template accepts ids of exactly this length and alphabet; the other templates accept any id.
_ID_LENGTH = 9
_MIN_HALF_MARKER = 2
_ID_LETTERS = string.ascii_letters + string.digits
# Beginnings of a call in llama3's format without a marker: up to its name, up to another key, and a part of either.
_NAME_OPENING = re.compile(r'\{\s*"name"\s*:\s*"')
_OTHER_OPENING = re.compile(r'\{\s*(?:"type"\s*:\s*"function"|"(?:parameters|arguments)"\s*:)')
_PART_OF_OPENING = re.compile(r'\{\s*(?:"\w*"?\s*|"name"\s*:\s*|"type"\s*:\s*"?\w*)?\Z')


async def with_tool_calls(
    events: AsyncIterator[Event],
    tool_format: ToolFormat,
    tools: Iterable[Tool],
    seed: int,
    place: Place = "anywhere",
) -> AsyncIterator[Event]:
    """Yield the same events with tool calls in place of their text.

    The finish reason of a reply with calls is TOOL_CALLS if the model itself ended the reply.

    Args:
        events: Events of one reply.
        tool_format: Format in which the model writes calls.
        tools: Tools that may be called; calls of other tools stay text.
        seed: Seed of the calls' ids, so that a repeated request has the same ids.
        place: Place of calls in the reply; see Place.
    """
    parser = CallParser(tool_format, tools, random.Random(seed), place)  # noqa: S311 (repeatable, not a secret)
    push = parser.push
    async for event in events:
        match event:
            case Delta(text="", reasoning=reasoning) if reasoning:
                yield event
            case Delta():
                text, calls = push(event.text)
                if calls or text != event.text:
                    event = replace(event, text=text, tool_calls=calls)
                if text or calls or event.logprobs or event.num_tokens or event.reasoning:
                    yield event
            case Completed():
                is_stopped = event.finish_reason is FinishReason.STOP and event.stop_string is None
                text, calls = parser.finish(is_cut=not is_stopped)
                if text or calls:
                    yield Delta(text, 0, tool_calls=calls)
                if parser.num_calls and is_stopped:
                    event = replace(event, finish_reason=FinishReason.TOOL_CALLS)
                yield event
            case _:
                yield event


class CallParser:
    """Incremental parser for the tool calls in a reply's text. Text that is not a call is passed on unchanged."""

    def __init__(
        self, tool_format: ToolFormat, tools: Iterable[Tool], ids: random.Random, place: Place = "anywhere"
    ) -> None:
        """Create a parser for a new reply.

        Args:
            tool_format: Format in which the model writes calls.
            tools: Tools that may be called; calls of other tools stay text.
            ids: Source of the calls' ids.
            place: Place of calls in the reply; see Place.
        """
        self._format = tool_format
        self._markers = MARKERS[tool_format]
        self._first = self._markers.begin[0]
        self._schemas = {tool.name: tool.parameters for tool in tools}
        self._ids = ids
        self._place = place
        self._held = ""
        self._num_searched = 0  # first position in the held text at which the end marker may begin
        self._in_call = False
        self._is_plain = False  # True if the rest of the reply contains no call
        self._has_begun = False
        self._is_after_call = False  # True until text other than white space follows a call
        self._gap = ""  # white space after a call
        self.num_calls = 0

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Append text of the reply. Returns the text and the calls that are final after it."""
        # Most text of a reply takes this path, which must cost less than a microsecond.
        if not self._held and self._has_begun and (self._is_plain or self._first not in text):
            return (self._after_gap(text) if self._is_after_call else text), ()
        self._held += text
        if not self._has_begun and not self._begin():
            return "", ()
        shown, calls = "", list[ToolCall]()
        while True:
            if not self._in_call:
                shown += self._text_before_marker()
            if not self._in_call or (end := self._end_of_call()) is None:
                return shown, tuple(calls)
            body, self._held = self._held[:end], self._held[end:]
            self._in_call = False
            found = self._read(body.removeprefix(self._markers.begin).removesuffix(self._markers.end))
            calls += found
            if found:
                self._is_after_call, self._gap = True, ""
            else:
                shown += self._after_gap(body)

    def finish(self, *, is_cut: bool = False) -> tuple[str, tuple[ToolCall, ...]]:
        """End the reply. Returns the remaining text and calls.

        `is_cut`: True if the model did not end the reply itself; an incomplete call is then left out.
        """
        held, self._held = self._held, ""
        may_be_call = self._in_call or not self._has_begun
        calls = self._read(held.strip().removeprefix(self._markers.begin)) if may_be_call and held else ()
        # One character after other text is more probably text than a marker's beginning.
        is_text = self._is_plain or (not may_be_call and not self.num_calls and len(held) < _MIN_HALF_MARKER)
        if calls or (is_cut and not is_text):
            return "", calls
        return self._after_gap(held), ()

    def _begin(self) -> bool:
        """Decide whether the reply begins with a call. Returns False if more text is needed."""
        start = self._held.lstrip()
        if not start:
            return False
        if self._markers.is_optional and (state := self._bare_state(start)) != "text":
            self._in_call = self._has_begun = state == "call"
            return self._has_begun
        marker = self._markers.begin
        if marker.startswith(start) and start != marker:
            return False
        if start.startswith(marker):
            self._held = start  # white space before the first call is not part of the text
        else:
            self._is_plain = self._place == "beginning"
        self._has_begun = True
        return True

    def _bare_state(self, start: str) -> Literal["call", "text", "undecided"]:
        """Classify a reply whose text `start` begins without a marker."""
        if self._format == "pythonic":
            names, end = set(self._schemas), "("
            rest = start[1:].lstrip() if start.startswith("[") else None
        else:
            names, end = (
                {json.dumps(name, ensure_ascii=is_ascii)[1:-1] for name in self._schemas for is_ascii in (False, True)},
                '"',
            )
            opening = _NAME_OPENING.match(start)
            rest = start[opening.end() :] if opening else None
            if _OTHER_OPENING.match(start):
                return "call"
            if _PART_OF_OPENING.match(start):
                return "undecided"
        if rest is None:
            return "text"
        if any(rest.startswith(name + end) for name in names):
            return "call"
        return "undecided" if any((name + end).startswith(rest) for name in names) else "text"

    def _text_before_marker(self) -> str:
        """Return the text that can be sent: up to the marker, or up to a possible beginning of one."""
        marker = self._markers.begin
        position = -1 if self._is_plain else self._held.find(marker)
        self._in_call = position >= 0
        if position < 0:
            position = len(self._held) - (0 if self._is_plain else overlap(self._held, marker))
        shown, self._held = self._held[:position], self._held[position:]
        self._num_searched = len(marker)
        return self._after_gap(shown)

    def _after_gap(self, text: str) -> str:
        """Return text that can be sent. White space after a call is held until other text follows, else dropped."""
        if not self._is_after_call:
            return text
        text = self._gap + text
        if not text.strip():
            self._gap = text
            return ""
        self._is_after_call = False
        return text

    def _end_of_call(self) -> int | None:
        """Return the length of the held call, or None if it is incomplete."""
        end = self._markers.end
        if not end:
            return None
        begin = len(self._markers.begin)
        while (position := self._held.find(end, self._num_searched)) >= 0:
            self._num_searched = position + 1
            if not is_open(self._format, self._held[begin:position]):
                return position + len(end)
        self._num_searched = max(begin, len(self._held) - len(end) + 1)
        return None

    def _read(self, body: str) -> tuple[ToolCall, ...]:
        try:
            found = [(name, _json_text(given)) for name, given in read_calls(self._format, body, self._schemas) or ()]
        except (ValueError, RecursionError):  # a number that JSON cannot represent, or too deep
            return ()
        self.num_calls += len(found)
        return tuple(ToolCall(self._new_id(), name, arguments) for name, arguments in found)

    def _new_id(self) -> str:
        return "".join(self._ids.choices(_ID_LETTERS, k=_ID_LENGTH))


def _json_text(arguments: dict[str, Any]) -> str:
    """Return arguments as JSON. Half of a surrogate pair stays an escape, because no other text can represent it.

    Raises ValueError for infinite numbers and NaN.
    """
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() or _is_encodable(text) else json.dumps(arguments)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
