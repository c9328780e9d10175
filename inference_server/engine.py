"""The one thread that owns a model: commands in, steps, events out to asyncio.

    async with engine.submit(request, text) as reply:  # CapacityExceeded, ServerStopping: refused, nothing happened
        async for event in reply: ...                   # Started, Delta…, Completed; leaving early cancels

asyncio and the thread exchange messages only: commands through a queue, events through call_soon_threadsafe, a few calls
a step. Cancelling is a command like any other and takes effect before the next step. Knows no gRPC and no tokenizer.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Set
from types import TracebackType

from inference_server.admission import Admission, Room, Ticket
from inference_server.blocks import BlockPool
from inference_server.errors import GenerationFailed, ModelNotReady, ServerStopping
from inference_server.runner import ModelRunner
from inference_server.scheduler import Policy, Scheduler
from inference_server.sequence import Completed, Delta, Event, Failed, GenerationRequest, Sequence, Started, TextStream
from inference_server.stepping import Stepper
from inference_server.tally import Tally

logger = logging.getLogger(__name__)

_Command = Callable[[], None]

# A whole reply with its log probabilities might be more than a gRPC message may hold.
MAX_JOINED_DELTAS = 64


class Reply:
    """The events of one request. Leaving the block before the last event cancels the request."""

    def __init__(self, release: Callable[["Reply"], None], ticket: Ticket) -> None:
        self.ticket = ticket
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._release = release
        self._is_done = False
        self._next: Event | None = None  # taken from the queue behind joined deltas, not given out yet

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
        """Raises GenerationFailed or ServerStopping if the reply cannot be finished."""
        if self._is_done:
            raise StopAsyncIteration
        event, self._next = self._next or await self.events.get(), None
        if isinstance(event, Delta):
            return event if self.events.empty() else self._joined(event)
        if isinstance(event, Failed):
            self._is_done = True
            raise event.error
        self._is_done = isinstance(event, Completed)
        return event

    def _joined(self, first: Delta) -> Delta:
        """`first` and the deltas that wait behind it, as one: a reader slower than the model need not pay for each."""
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


class Engine:
    """Continuous batching for one model. All public methods belong to the event loop's thread."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        end_ids: Set[int],
        policy: Policy,
        room: Room,
        max_unused_blocks: int | None = None,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        """`end_ids`: tokens that end a reply. `max_unused_blocks`: of the prefix cache (blocks.py).

        `on_broken` is called, on the loop, if the model failed for good.
        """
        self.runner = runner
        cache = runner.cache
        pool = BlockPool(
            num_blocks=cache.num_blocks - 1, block_size=cache.block_size, max_unused_blocks=max_unused_blocks
        )
        self.scheduler = Scheduler(pool, policy)
        self.admission = Admission(room)
        self.is_stalled = False  # the watchdog says so
        self._stepper = Stepper(runner, self.scheduler, end_ids, self._emit)
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._emitted: list[tuple[Reply, Event]] = []  # the thread's own, until published
        self._in_flight: set[Reply] = set()
        self._last_progress = time.monotonic()  # written by both threads: the newest counts
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_accepting = True
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def num_in_flight(self) -> int:
        """Requests accepted and neither finished nor yet cancelled."""
        return len(self._in_flight)

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
        seq = Sequence(request=request, text=text, sink=reply, arrived=time.monotonic())
        self._in_flight.add(reply)
        self._idle.clear()
        self._commands.put(lambda: self.scheduler.add(seq))
        return reply

    async def drain(self) -> None:
        """Accept nothing more and wait until every accepted request is finished or cancelled."""
        self._is_accepting = False
        await self._idle.wait()

    async def stop(self) -> None:
        """End the thread after its step; what still runs fails with ServerStopping."""
        self._is_accepting = False
        self._commands.put(None)
        # A thread that hangs does not come back.
        await asyncio.to_thread(self._thread.join, 0.1 if self.is_stalled else 10.0)
        for reply in list(self._in_flight):
            self._deliver([(reply, Failed(ServerStopping("this server is stopping")))])

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

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return self.admission.num_waiting

    @property
    def num_slots(self) -> int:
        return self.scheduler.max_running

    @property
    def num_blocks_in_use(self) -> int:
        return self.scheduler.num_blocks_in_use

    @property
    def num_blocks(self) -> int:
        return self.scheduler.num_blocks

    @property
    def step_tokens(self) -> Tally:
        return self._stepper.step_tokens

    @property
    def seconds_without_progress(self) -> float:
        """How long work has been waiting for the model without a step; 0 if there is none."""
        return time.monotonic() - self._last_progress if self._in_flight else 0.0

    def give_up(self) -> None:
        """The thread does not come back: tell everyone who waits."""
        self._break()

    def _cancel(self, reply: Reply) -> None:
        def remove() -> None:
            for seq in [*self.scheduler.waiting, *self.scheduler.running]:
                if seq.sink is reply:
                    self.scheduler.remove(seq)
            self._on_loop(self._forget, reply)

        self._commands.put(remove)

    # What follows runs on the model's thread.

    def _run(self) -> None:
        try:
            while not self._stepper.is_broken:
                if not self._apply_commands():
                    return
                step = self._stepper.begin()
                self._publish()
                for _ in self._stepper.passes(step):
                    self._last_progress = time.monotonic()
                    self._publish()
        except Exception:
            logger.exception("the engine itself failed")
        self._on_loop(self._break)

    def _apply_commands(self) -> bool:
        """Do what was asked since the last step; wait for a command if there is nothing to run. False: stop."""
        while True:
            try:
                command = self._commands.get(block=self.scheduler.is_idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _emit(self, seq: Sequence, event: Event) -> None:
        self._emitted.append((seq.sink, event))

    def _publish(self) -> None:
        if self._emitted:
            self._last_progress = time.monotonic()
            self._on_loop(self._deliver, self._emitted)
            self._emitted = []

    def _on_loop(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(function, *args)

    # What follows runs on the event loop.

    def _deliver(self, emitted: list[tuple[Reply, Event]]) -> None:
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
        for reply in list(self._in_flight):
            self._deliver([(reply, Failed(GenerationFailed("the model failed")))])
        self._on_broken()
