"""Base class of the engines that generate text: accepts requests, delivers events, tracks the requests in flight.

    async with engine.submit(request, text) as reply:  # raises a TailraceError if the request is rejected
        async for event in reply: ...                   # Started, Delta…, Completed; leaving early cancels the request

Subclasses compute the tokens. Does not depend on gRPC or a tokenizer.
"""

import asyncio
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inference_server.engine.admission import Admission, CapacityLimits
from inference_server.engine.histogram import Histogram
from inference_server.engine.reply import Reply
from inference_server.engine.sequence import Sequence
from inference_server.errors import GenerationFailed, ModelNotReady, ServerStopping, TailraceError
from inference_server.generation import Completed, Event, Failed, GenerationRequest, Started, TextStream


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the engine's start."""

    queried_tokens: int  # prompt tokens looked up in the prefix cache
    hit_tokens: int  # prompt tokens found in the prefix cache
    preemptions: int  # times a sequence lost its slot, because of blocks, memory or an interactive request
    drafted_tokens: int = 0  # draft tokens of speculative decoding that were checked
    accepted_tokens: int = 0  # draft tokens that became tokens of replies


class BaseEngine(ABC):
    """Base class of engines: a model and its requests. All public methods must be called on the event loop's thread.

    Attributes:
        admission: Admission control for interactive requests.
        batch_admission: Admission control for batch requests.
        is_stalled: True if the engine has stopped making steps; set by the watchdog.
    """

    def __init__(self, limits: CapacityLimits, on_broken: Callable[[], None]) -> None:
        """Create an idle engine. `on_broken` is called on the event loop after a permanent failure or `abandon`."""
        self.admission = Admission(limits)
        self._num_slots = limits.slots
        self._num_batch_slots = limits.slots if limits.batch_slots is None else limits.batch_slots
        self.batch_admission = Admission(dataclasses.replace(limits, slots=self._num_batch_slots))
        self.is_stalled = False
        self._on_broken = on_broken
        self._is_accepting = True
        self._in_flight: set[Reply] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_progress = time.monotonic()

    @property
    @abstractmethod
    def path(self) -> str:
        """Description of the forward passes for the log, e.g. "kernels for avx2, one program of compiled kernels"."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of logits per position. Valid token ids are smaller."""

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Sequences with a slot."""

    @property
    @abstractmethod
    def num_blocks_in_use(self) -> int:
        """Blocks of the KV cache that sequences hold."""

    @property
    @abstractmethod
    def num_blocks(self) -> int:
        """Blocks of the KV cache that sequences can get."""

    @property
    @abstractmethod
    def num_slots(self) -> int:
        """Sequences that may run at the same time; temporarily lower after memory ran out."""

    @property
    @abstractmethod
    def totals(self) -> Totals:
        """Counts of prefix-cache lookups, preemptions and draft tokens since the start."""

    @property
    @abstractmethod
    def step_tokens(self) -> Histogram:
        """Distribution of the tokens computed in each step."""

    @property
    @abstractmethod
    def preempts_batch(self) -> bool:
        """True if interactive requests can take the slots of batch requests."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop the computation, and fail the requests in flight with ServerStopping."""

    @abstractmethod
    def _add(self, seq: Sequence) -> None:
        """Put a sequence into the wait queue. The subclass sends its events to `seq.reply` through `_deliver`."""

    @abstractmethod
    def _cancel(self, reply: Reply) -> None:
        """Remove the sequence of this reply, then call `_forget`."""

    @property
    def num_in_flight(self) -> int:
        """Requests that were accepted and are neither finished nor cancelled."""
        return len(self._in_flight)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot, of both priorities."""
        return self.admission.num_waiting + self.num_waiting_batch

    @property
    def num_waiting_batch(self) -> int:
        """Batch requests that wait for a slot."""
        return self.batch_admission.num_waiting

    @property
    def utilization(self) -> float:
        """Share of the slots or of the KV cache in use, whichever is larger.

        The value is 0 to 1, but may exceed 1 while interactive requests wait. Waiting batch requests do not count,
        because they do not delay interactive requests.
        """
        num_active = self.num_in_flight - self.num_waiting_batch
        return max(num_active / self.num_slots, self.num_blocks_in_use / max(1, self.num_blocks))

    @property
    def seconds_without_progress(self) -> float:
        """Seconds since the last step, or since the end of an idle period; 0 without requests in flight."""
        return time.monotonic() - self._last_progress if self._in_flight else 0.0

    def submit(self, request: GenerationRequest, text: TextStream) -> Reply:
        """Put a request into the wait queue and return its reply.

        Raises:
            TailraceError: For the same reasons as `check_capacity`. The request then has no effect.
        """
        num_tokens = len(request.prompt_ids)
        self.check_capacity(
            request.account,
            num_tokens=num_tokens,
            reject_if_busy=request.reject_if_busy,
            deadline_seconds=request.deadline_seconds,
            is_batch=request.is_batch,
        )
        if not self._in_flight:
            self._last_progress = time.monotonic()
        admission = self.batch_admission if request.is_batch else self.admission
        ticket = admission.enter(request.account, num_tokens)
        reply = Reply(self._cancel, ticket, joins_deltas=request.joins_deltas)
        seq = Sequence(request=request, text=text, reply=reply, arrived=time.monotonic())
        self._in_flight.add(reply)
        self._idle.clear()
        self._add(seq)
        return reply

    def check_capacity(
        self,
        account: str,
        *,
        num_tokens: int = 0,
        reject_if_busy: bool = False,
        deadline_seconds: float | None = None,
        is_batch: bool = False,
    ) -> None:
        """Check whether `submit` would accept a request now. Lets the server reject it before the prompt is tokenised.

        Args:
            account: Account of the client.
            num_tokens: Length of the prompt in tokens; 0 if it is not known yet.
            reject_if_busy: Reject the request if it would have to wait.
            deadline_seconds: Time until the client's deadline; None: no deadline.
            is_batch: True for a batch request. The limits count requests of each priority separately.

        Raises:
            CapacityExceeded: The limits are reached.
            ServerStopping: The server is shutting down, or the engine has failed permanently.
            ModelNotReady: The engine is stalled.
        """
        if not self._is_accepting:
            raise ServerStopping("this server is stopping")
        if self.is_stalled:
            raise ModelNotReady("the model does not respond at present")
        admission = self.admission
        num_slots_taken = 0 if self.preempts_batch else self.batch_admission.num_in_flight - self.num_waiting_batch
        if is_batch:
            num_free = self._num_slots - self.admission.num_in_flight
            admission, num_slots_taken = self.batch_admission, max(0, self._num_batch_slots - num_free)
        admission.check(
            account,
            num_tokens=num_tokens,
            reject_if_busy=reject_if_busy,
            deadline_seconds=deadline_seconds,
            num_slots_taken=num_slots_taken,
        )

    async def drain(self) -> None:
        """Reject new requests, and wait until every accepted request is finished or cancelled."""
        self._is_accepting = False
        await self._idle.wait()

    def abandon(self) -> None:
        """Fail all requests of an engine that stays stalled, reject new ones, and call `on_broken`."""
        self._break()

    def _deliver(self, emitted: Iterable[tuple[Reply, Event]]) -> None:
        for reply, event in emitted:
            reply.events.put_nowait(event)
            if isinstance(event, Started):
                reply.ticket.admission.admitted(reply.ticket)
            elif isinstance(event, Completed | Failed):
                self._forget(reply)

    def _forget(self, reply: Reply) -> None:
        if not reply.ticket.admission.leave(reply.ticket):
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
