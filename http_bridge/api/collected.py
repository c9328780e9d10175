"""Collects the events of a reply, for a client that did not request a stream."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from http_bridge.api.reply_writer import CompleteReply
from http_bridge.upstream.merged import merged
from tailrace.v1.inference_pb2 import Completed, RunResponse


class Incomplete(Exception):
    """The server ended a reply without `completed` and without an error."""


class _Collector:
    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._reply = CompleteReply(Completed(), "")
        self._is_complete = False

    def add(self, event: RunResponse) -> None:
        delta = event.delta
        self._texts.append(delta.text)
        self._thoughts.append(delta.reasoning)
        self._reply.tool_calls.extend(delta.tool_calls)
        self._reply.logprobs.extend(delta.logprobs)
        if event.HasField("completed"):
            self._reply.completed, self._is_complete = event.completed, True

    def reply(self) -> CompleteReply:
        if not self._is_complete:
            raise Incomplete
        self._reply.text = "".join(self._texts)
        self._reply.reasoning = "".join(self._thoughts)
        return self._reply


async def collected(events: AsyncIterator[RunResponse]) -> CompleteReply:
    """Return the whole reply.

    Raises:
        Incomplete: The events ended before the reply did.
        AioRpcError: The reply failed.
    """
    collector = _Collector()
    async for event in events:
        collector.add(event)
    return collector.reply()


async def all_collected(replies: Sequence[AsyncIterator[RunResponse]]) -> list[CompleteReply]:
    """Collect several replies at the same time, and return them in the same order.

    Raises:
        Incomplete: The events of a reply ended before the reply did.
        AioRpcError: A reply failed.
    """
    collectors = [_Collector() for _ in replies]
    async with aclosing(merged(replies)) as events:
        async for index, event in events:
            collectors[index].add(event)
    return [collector.reply() for collector in collectors]


async def failing(error: Exception) -> AsyncIterator[RunResponse]:
    """Return the event stream of a refused request: it raises `error` before its first event."""
    raise error
    yield
