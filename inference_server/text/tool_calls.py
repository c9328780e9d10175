"""Parses tool calls in a reply's text and replaces their text with call events.

Does not depend on a tokenizer, an engine or gRPC.
"""

import json
import random
import string
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

from inference_server.generation import Completed, Delta, Event, FinishReason, ToolCall
from inference_server.text.detokenizer import overlap
from inference_server.text.tool_formats import CALL_MARKERS, HERMES_END, MISTRAL_ARGUMENTS, ToolFormat

_ARGUMENTS_KEYS = ("arguments", "parameters")
# Mistral's chat template accepts ids of exactly this length and alphabet; the other templates accept any id.
_ID_LENGTH = 9
_ID_LETTERS = string.ascii_letters + string.digits
_DECODER = json.JSONDecoder()


async def with_tool_calls(
    events: AsyncIterator[Event], tool_format: ToolFormat, names: Iterable[str], seed: int
) -> AsyncIterator[Event]:
    """Yield the same events with tool calls in place of their text.

    Args:
        events: Events of one reply.
        tool_format: Format in which the model writes calls.
        names: Names of the tools that may be called; calls of other tools stay text.
        seed: Seed of the calls' ids, so that a repeated request has the same ids.
    """
    parser = CallParser(tool_format, names, random.Random(seed))  # noqa: S311 (repeatable, not a secret)
    async for event in events:
        match event:
            case Delta(text="", reasoning=reasoning) if reasoning:
                yield event
            case Delta():
                text, calls = parser.push(event.text)
                if text or calls or event.logprobs or event.num_tokens or event.reasoning:
                    yield replace(event, text=text, tool_calls=calls)
            case Completed():
                text, calls = parser.finish()
                if text or calls:
                    yield Delta(text, 0, tool_calls=calls)
                is_stopped = event.finish_reason is FinishReason.STOP and event.stop_string is None
                if parser.num_calls and is_stopped:
                    event = replace(event, finish_reason=FinishReason.TOOL_CALLS)
                yield event
            case _:
                yield event


class CallParser:
    """Incremental parser for the tool calls in a reply's text. Text that is not a call is passed on unchanged."""

    def __init__(self, tool_format: ToolFormat, names: Iterable[str], ids: random.Random) -> None:
        """Create a parser for a new reply.

        Args:
            tool_format: Format in which the model writes calls.
            names: Names of the request's tools; calls of other tools stay text.
            ids: Source of the calls' ids.
        """
        self._format = tool_format
        self._marker = CALL_MARKERS[tool_format]
        self._names = frozenset(names)
        self._ids = ids
        self._held = ""
        self._in_call = False
        self.num_calls = 0

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Append text of the reply. Returns the text and the calls that are final after it."""
        self._held += text
        if self._format == "llama3" and not self.num_calls and self._may_be_bare_call():
            return "", ()
        if self._format != "hermes":
            return ("", ()) if self._in_call else (self._text_before_marker(), ())
        shown, calls = "", list[ToolCall]()
        while True:
            if not self._in_call:
                shown += self._text_before_marker()
            if not self._in_call or (end := self._held.find(HERMES_END)) < 0:
                return shown, tuple(calls)
            body, self._held = self._held[: end + len(HERMES_END)], self._held[end + len(HERMES_END) :]
            self._in_call = False
            found = self._read(body[len(self._marker) : -len(HERMES_END)])
            if found:
                calls += found
            else:
                shown += body

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """End the reply. Returns the remaining text and calls."""
        held, self._held = self._held, ""
        is_call = self._in_call or self._format == "llama3"
        body = held.strip().removeprefix(self._marker) if is_call else None
        calls = self._read(body) if body is not None else ()
        return ("", calls) if calls else (held, ())

    def _may_be_bare_call(self) -> bool:
        start = self._held.lstrip()
        return start.startswith("{") or self._marker.startswith(start[: len(self._marker)])

    def _text_before_marker(self) -> str:
        """Return the text that can be sent: up to the marker, or up to a possible beginning of one."""
        position = self._held.find(self._marker)
        self._in_call = position >= 0
        if position < 0:
            position = len(self._held) - overlap(self._held, self._marker)
        shown, self._held = self._held[:position], self._held[position:]
        # White space between calls is not part of the text.
        return shown if shown.strip() or not self.num_calls else ""

    def _read(self, body: str) -> tuple[ToolCall, ...]:
        found = _mistral_calls(body) if self._format == "mistral" and MISTRAL_ARGUMENTS in body else _json_calls(body)
        if found is None or any(name not in self._names for name, _ in found):
            return ()
        self.num_calls += len(found)
        return tuple(ToolCall(self._new_id(), name, json.dumps(given, ensure_ascii=False)) for name, given in found)

    def _new_id(self) -> str:
        return "".join(self._ids.choices(_ID_LETTERS, k=_ID_LENGTH))


def _json_calls(body: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Return names and arguments of calls written as JSON objects or arrays, separated by semicolons or white space.

    Returns None if `body` is anything else.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    while body := body.strip(" \t\r\n;"):
        try:
            value, end = _DECODER.raw_decode(body)
        except (ValueError, RecursionError):
            return None
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                return None
            arguments: object = next((item[key] for key in _ARGUMENTS_KEYS if key in item), {})
            if not isinstance(arguments, dict):
                return None
            found.append((item["name"], arguments))
        body = body[end:]
    return found or None


def _mistral_calls(body: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Return names and arguments of calls written as name[ARGS]{…}, or None if `body` is anything else."""
    found: list[tuple[str, dict[str, Any]]] = []
    for part in body.split(CALL_MARKERS["mistral"]):
        name, _, arguments = part.partition(MISTRAL_ARGUMENTS)
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        found.append((name.strip(), value))
    return found or None
