"""What every engine is to the rest: requests in, events out, and the part of it that lives on the event loop.

    async with engine.submit(request, text) as reply:  # CapacityExceeded, ServerStopping: refused, nothing happened
        async for event in reply: ...                   # Started, Delta…, Completed; leaving early cancels

Knows who is in flight and who is let in; knows nothing of what computes the tokens. No gRPC and no tokenizer either.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inference_server.engine.admission import Admission, Room
from inference_server.engine.histogram import Tally
from inference_server.engine.reply import Reply
from inference_server.engine.sequence import Sequence
from inference_server.errors import GenerationFailed, ModelNotReady, ServerStopping, TailraceError
from inference_server.generation import Completed, Event, Failed, GenerationRequest, Started, TextStream


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the engine's start."""

    queried_tokens: int  # of prompts, looked for in the prefix cache
    hit_tokens: int  # found there
    preemptions: int  # sequences that went back to wait because blocks or memory ran out


class BaseEngine(ABC):
    """One model and its requests. All public methods belong to the event loop's thread."""

    def __init__(self, room: Room, on_broken: Callable[[], None]) -> None:
        """`on_broken` is called, on the loop, if the model failed for good."""
        self.admission = Admission(room)
        self.is_stalled = False  # the watchdog says so
        self._on_broken = on_broken
        self._is_accepting = True
        self._in_flight: set[Reply] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_progress = time.monotonic()

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids that the model has logits for are below this."""

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Sequences that have a slot."""

    @property
    @abstractmethod
    def num_blocks_in_use(self) -> int:
        """Blocks of the KV cache that sequences hold."""

    @property
    @abstractmethod
    def num_blocks(self) -> int:
        """All of them."""

    @property
    @abstractmethod
    def num_slots(self) -> int:
        """Most sequences that may run at the moment."""

    @property
    @abstractmethod
    def totals(self) -> Totals: ...

    @property
    @abstractmethod
    def step_tokens(self) -> Tally:
        """Tokens computed in each step."""

    @abstractmethod
    async def stop(self) -> None:
        """End what computes; what still runs fails with ServerStopping."""

    @abstractmethod
    def _add(self, seq: Sequence) -> None:
        """Have a sequence wait for its slot; its events go to `seq.reply` by `_deliver`."""

    @abstractmethod
    def _cancel(self, reply: Reply) -> None:
        """Forget the sequence of this reply, and then the reply (`_forget`)."""

    @property
    def num_in_flight(self) -> int:
        """Requests accepted and neither finished nor yet cancelled."""
        return len(self._in_flight)

    @property
    def num_waiting(self) -> int:
        return self.admission.num_waiting

    @property
    def utilization(self) -> float:
        """What is in use, of slots or of the KV cache, whichever is more: 0 to 1, and above it when requests wait."""
        return max(self.num_in_flight / self.num_slots, self.num_blocks_in_use / max(1, self.num_blocks))

    @property
    def seconds_without_progress(self) -> float:
        """How long work has been waiting for the model without a step; 0 if there is none."""
        return time.monotonic() - self._last_progress if self._in_flight else 0.0

    def submit(self, request: GenerationRequest, text: TextStream) -> Reply:
        """Accept a request into the waiting room. Raises what `check_capacity` raises; then nothing happened."""
        num_tokens = len(request.prompt_ids)
        self.check_capacity(
            request.account,
            num_tokens=num_tokens,
            reject_if_busy=request.reject_if_busy,
            deadline_seconds=request.deadline_seconds,
        )
        if not self._in_flight:
            self._last_progress = time.monotonic()
        reply = Reply(self._cancel, self.admission.enter(request.account, num_tokens))
        seq = Sequence(request=request, text=text, reply=reply, arrived=time.monotonic())
        self._in_flight.add(reply)
        self._idle.clear()
        self._add(seq)
        return reply

    def check_capacity(
        self, account: str, *, num_tokens: int = 0, reject_if_busy: bool = False, deadline_seconds: float | None = None
    ) -> None:
        """Raises what submit would raise now; asked before a prompt is tokenised for nothing.

        CapacityExceeded, ServerStopping, or ModelNotReady while the model does not move.
        """
        if not self._is_accepting:
            raise ServerStopping("this server is stopping")
        if self.is_stalled:
            raise ModelNotReady("the model does not answer at the moment")
        self.admission.check(
            account, num_tokens=num_tokens, reject_if_busy=reject_if_busy, deadline_seconds=deadline_seconds
        )

    async def drain(self) -> None:
        """Accept nothing more and wait until every accepted request is finished or cancelled."""
        self._is_accepting = False
        await self._idle.wait()

    def give_up(self) -> None:
        """What computes does not come back: tell everyone who waits."""
        self._break()

    def _deliver(self, emitted: Iterable[tuple[Reply, Event]]) -> None:
        for reply, event in emitted:
            reply.events.put_nowait(event)
            if isinstance(event, Started):
                self.admission.admitted(reply.ticket)
            elif isinstance(event, Completed | Failed):
                self._forget(reply)

    def _forget(self, reply: Reply) -> None:
        if not self.admission.leave(reply.ticket):
            return
        self._in_flight.discard(reply)
        if not self._in_flight:
            self._idle.set()

    def _break(self) -> None:
        self._is_accepting = False
        self._fail_all(GenerationFailed("the model failed"))
        self._on_broken()

    def _fail_all(self, error: TailraceError) -> None:
        self._deliver([(reply, Failed(error)) for reply in self._in_flight])
