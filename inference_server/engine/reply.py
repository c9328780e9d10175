"""Delivers the events of one request to the code that reads them on the event loop."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from inference_server.engine.admission import AdmissionTicket
from inference_server.generation import Completed, Delta, Event, Failed

# Largest number of deltas joined in one event. Without this limit, an event with the log probabilities of a whole reply
# could exceed the size limit of a gRPC message.
MAX_JOINED_DELTAS = 64


class Reply:
    """Asynchronous iterator over one request's events.

    Leaving its `async with` block before the last event cancels the request.
    """

    def __init__(
        self, release: Callable[["Reply"], None], ticket: AdmissionTicket, *, joins_deltas: bool = True
    ) -> None:
        """Create the reply of an accepted request.

        Args:
            release: Called when the reader leaves early.
            ticket: The request's ticket from `Admission.enter`.
            joins_deltas: True if a slow reader receives several deltas joined in one event.
        """
        self.ticket = ticket
        self._joins_deltas = joins_deltas
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._release = release
        self._is_done = False
        self._next: Event | None = None  # the event that followed joined deltas, not yet returned

    async def __aenter__(self) -> "Reply":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_done:
            self._release(self)

    def __aiter__(self) -> "Reply":
        return self

    async def __anext__(self) -> Event:
        """Return the next event. Raises GenerationFailed or ServerStopping if the reply cannot be finished."""
        if self._is_done:
            raise StopAsyncIteration
        event, self._next = self._next or await self.events.get(), None
        if isinstance(event, Delta):
            return self._joined(event) if self._joins_deltas and not self.events.empty() else event
        if isinstance(event, Failed):
            self._is_done = True
            raise event.error
        self._is_done = isinstance(event, Completed)
        return event

    def _joined(self, first: Delta) -> Delta:
        """Join `first` with the deltas queued behind it, so that a slow reader receives one event instead of many."""
        deltas = [first]
        while len(deltas) < MAX_JOINED_DELTAS and not self.events.empty():
            event = self.events.get_nowait()
            if not isinstance(event, Delta):
                self._next = event
                break
            deltas.append(event)
        return Delta(
            text="".join(delta.text for delta in deltas),
            num_tokens=sum(delta.num_tokens for delta in deltas),
            logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
            last_token=deltas[-1].last_token,
        )
