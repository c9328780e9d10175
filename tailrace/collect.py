"""Collects the events of a reply."""

from collections.abc import Iterable

from tailrace.errors import ConnectionFailedError
from tailrace.types import (
    Event,
    Finished,
    ReasoningDelta,
    Reply,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCalled,
)


class Collector:
    """Assembles a reply from its events."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        self._started: Started | None = None
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Add the next event."""
        match event:
            case TextDelta():
                self._texts.append(event.text)
                self._logprobs.extend(event.logprobs)
            case ReasoningDelta():
                self._thoughts.append(event.text)
            case ToolCalled():
                self._calls.append(event.call)
            case Started():
                self._started = event
            case Finished():
                self._finished = event

    def reply(self) -> Reply:
        """Return the reply.

        Raises:
            ConnectionFailedError: The events ended too early.
        """
        if self._finished is None:
            raise ConnectionFailedError("The reply ended too early.")
        return Reply(
            text="".join(self._texts),
            finish_reason=self._finished.reason,
            usage=self._finished.usage,
            model=self._started.model if self._started else "",
            request_id=self._started.request_id if self._started else "",
            reasoning="".join(self._thoughts),
            tool_calls=tuple(self._calls),
            logprobs=tuple(self._logprobs),
        )


def collected(events: Iterable[Event]) -> Reply:
    """Return the reply that consists of these events. Raises ConnectionFailedError if they end too early."""
    collector = Collector()
    for event in events:
        collector.add(event)
    return collector.reply()
