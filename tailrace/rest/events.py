"""Reads the event stream of the bridge's OpenAI routes, piece by piece and without I/O."""

import json
from collections.abc import Iterator
from typing import Any, cast

from tailrace.errors import ConnectionFailedError, TailraceError
from tailrace.rest.errors import stream_error
from tailrace.types import (
    Candidate,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    Usage,
)

_DONE = b"[DONE]"


class EventReader:
    """Reads one reply. Call `feed` with each piece of the body, then `end`."""

    def __init__(self, model: str, request_id: str) -> None:
        self._started = Started(model, request_id)
        self._rest = b""
        self._reason: FinishReason | None = None
        self._usage = Usage()
        self.is_done = False

    @property
    def request_id(self) -> str:
        """Id of the request in the logs of the services; empty if the answer has none."""
        return self._started.request_id

    def start(self) -> Started:
        """Return the first event: the bridge has accepted the request."""
        return self._started

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that `data` completes.

        Raises:
            TailraceError: The stream reports an error.
            ConnectionFailedError: The stream is not one of the bridge's.
        """
        # Only line feeds separate lines. str.splitlines would also split at U+2028 within a text.
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            # A line without data is a keep-alive comment, or the blank line after an event.
            if line.startswith(b"data:") and not self.is_done:
                yield from self._event(line.removeprefix(b"data:").strip())

    def end(self) -> None:
        """Raise ConnectionFailedError if the stream ended before the reply did."""
        if not self.is_done:
            raise self._broken("The bridge ended the reply too early.")

    def _event(self, data: bytes) -> Iterator[Event]:
        if data == _DONE:
            if self._reason is None:
                raise self._broken("The bridge ended the reply without a reason.")
            self.is_done = True
            yield Finished(self._reason, self._usage)
            return
        try:
            yield from self._chunk(json.loads(data))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._broken(f"The address sent an event that is not Tailrace's: {data[:80]!r}.") from None

    def _chunk(self, chunk: dict[str, Any]) -> Iterator[Event]:
        if error := chunk.get("error"):
            raise stream_error(error, self._started.request_id)
        if usage := chunk.get("usage"):
            self._usage = _usage(usage)
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                yield ReasoningDelta(thought)
            text = delta.get("content") or choice.get("text") or ""
            logprobs = _logprobs(choice.get("logprobs"))
            if text or logprobs:
                yield TextDelta(text, logprobs)
            for call in delta.get("tool_calls") or ():
                function = call["function"]
                yield ToolCalled(ToolCall(function["name"], function["arguments"], call["id"]))
            if reason := choice.get("finish_reason"):
                self._reason = cast(FinishReason, reason)

    def _broken(self, sentence: str) -> TailraceError:
        return ConnectionFailedError(sentence, http_status=200, request_id=self._started.request_id)


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        usage["prompt_tokens"],
        usage["completion_tokens"],
        (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0),
    )


def _logprobs(logprobs: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    if not logprobs:
        return ()
    if "content" in logprobs:
        return tuple(
            TokenLogprob(
                each["token"], each["logprob"], bytes(each["bytes"]), tuple(map(_candidate, each["top_logprobs"]))
            )
            for each in logprobs["content"] or ()
        )
    rows = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    return tuple(
        TokenLogprob(text, logprob, None, tuple(Candidate(*candidate) for candidate in top.items()))
        for text, logprob, top in rows
    )


def _candidate(candidate: dict[str, Any]) -> Candidate:
    return Candidate(candidate["token"], candidate["logprob"], bytes(candidate["bytes"]))
