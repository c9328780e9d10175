"""Tailrace's own engine: continuous batching on a thread that owns the model.

The event loop and the thread exchange messages only. Commands go through a queue, and events through a few calls of
call_soon_threadsafe per step. A cancellation is a command, and takes effect before the next step. This module does not
depend on gRPC or a tokenizer.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Set

from inference_server.attention.kv_cache import NUM_SCRATCH_BLOCKS
from inference_server.engine.admission import CapacityLimits
from inference_server.engine.base import BaseEngine, Totals
from inference_server.engine.histogram import Histogram
from inference_server.engine.native.sampler import Sample
from inference_server.engine.native.scheduling.block_pool import BlockPool
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import Policy
from inference_server.engine.native.speculation.drafting import Drafting
from inference_server.engine.native.step_rows import Logits, sample_tokens
from inference_server.engine.native.stepper import Stepper
from inference_server.engine.reply import Reply
from inference_server.engine.sequence import Sequence
from inference_server.errors import ServerStopping
from inference_server.generation import Event
from inference_server.model.runner import ModelRunner

logger = logging.getLogger(__name__)

_Command = Callable[[], None]


class Engine(BaseEngine):
    """Continuous batching for one model.

    Attributes:
        runner: Computes the forward passes.
        scheduler: Sequences that wait or run. Only the engine's thread changes it.
        drafting: Chooses the draft tokens; None without speculative decoding.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        end_ids: Set[int],
        policy: Policy,
        limits: CapacityLimits,
        max_unused_blocks: int | None = None,
        on_broken: Callable[[], None] = lambda: None,
        sample: Callable[[Logits], list[Sample]] = sample_tokens,
        drafting: Callable[[Scheduler], Drafting] | None = None,
        on_thread: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the engine's thread. Called on the event loop.

        Args:
            runner: Computes the forward passes; used by the engine's thread only.
            end_ids: Tokens that end a reply.
            policy: Limits and modes of the scheduler.
            limits: Limits for requests in flight.
            max_unused_blocks: Blocks without users that the prefix cache keeps (see BlockPool).
            on_broken: Called on the event loop after the model has failed permanently, or after `abandon`.
            sample: Chooses a token for each row of logits; tests replace it.
            drafting: Creates the Drafting for the engine's scheduler; None: no speculative decoding.
            on_thread: Called on the engine's thread before the first step.
        """
        super().__init__(limits, on_broken)
        self.runner = runner
        cache = runner.cache
        pool = BlockPool(
            num_blocks=cache.num_blocks - NUM_SCRATCH_BLOCKS,
            block_size=cache.block_size,
            num_reserved=NUM_SCRATCH_BLOCKS,
            max_unused_blocks=max_unused_blocks,
        )
        self.scheduler = Scheduler(pool, policy)
        self.drafting = None if drafting is None else drafting(self.scheduler)
        self._stepper = Stepper(runner, self.scheduler, end_ids, self._emit, sample, self.drafting)
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        # Events that the engine's thread has emitted and not yet passed to the event loop.
        self._emitted: list[tuple[Reply, Event]] = []
        self._on_thread = on_thread
        # Both threads write _last_progress, and the newest value counts.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop the thread after its current step, and fail the requests in flight with ServerStopping."""
        self._is_accepting = False
        self._commands.put(None)
        # The wait is limited, because a stalled thread may never return.
        await asyncio.to_thread(self._thread.join, 0.1 if self.is_stalled else 10.0)
        if self.drafting is not None and self.drafting.num_drafted:
            logger.info("%d of %d draft tokens were accepted", self.drafting.num_accepted, self.drafting.num_drafted)
        self._fail_all(ServerStopping("this server is stopping"))

    @property
    def path(self) -> str:
        return self.runner.path

    @property
    def vocab_size(self) -> int:
        return self.runner.vocab_size

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    @property
    def num_blocks_in_use(self) -> int:
        return self.scheduler.num_blocks_in_use

    @property
    def num_blocks(self) -> int:
        return self.scheduler.num_blocks

    @property
    def totals(self) -> Totals:
        scheduler, drafting = self.scheduler, self.drafting
        return Totals(
            scheduler.num_queried_tokens,
            scheduler.num_hit_tokens,
            scheduler.num_preemptions,
            drafted_tokens=drafting.num_drafted if drafting else 0,
            accepted_tokens=drafting.num_accepted if drafting else 0,
        )

    @property
    def step_tokens(self) -> Histogram:
        return self._stepper.step_tokens

    @property
    def num_slots(self) -> int:
        return self.scheduler.max_running

    @property
    def preempts_batch(self) -> bool:
        return self.scheduler.preempts_batch

    def _add(self, seq: Sequence) -> None:
        self._commands.put(lambda: self.scheduler.add(seq))

    def _cancel(self, reply: Reply) -> None:
        def remove() -> None:
            for seq in [*self.scheduler.waiting, *self.scheduler.running]:
                if seq.reply is reply:
                    self.scheduler.remove(seq)
            self._on_loop(self._forget, reply)

        self._commands.put(remove)

    # All methods below run on the engine's thread.

    def _run(self) -> None:
        try:
            self._on_thread()
            while not self._stepper.is_broken:
                if not self._apply_commands():
                    self._flush()
                    return
                for _ in self._stepper.run():
                    self._last_progress = time.monotonic()
                    self._publish()
                if self.scheduler.is_idle:
                    self._flush()  # otherwise the last tokens would reach clients only after the next command
        except Exception:
            logger.exception("the engine's thread failed")
        self._on_loop(self._break)

    def _flush(self) -> None:
        self._stepper.flush()
        self._publish()

    def _apply_commands(self) -> bool:
        """Execute the queued commands, and wait for one if no sequence needs a step. Returns False to stop the thread."""
        while True:
            try:
                command = self._commands.get(block=self.scheduler.is_idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _emit(self, seq: Sequence, event: Event) -> None:
        self._emitted.append((seq.reply, event))

    def _publish(self) -> None:
        if self._emitted:
            self._last_progress = time.monotonic()
            self._on_loop(self._deliver, self._emitted)
            self._emitted = []

    def _on_loop(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: events are no longer needed
            self._loop.call_soon_threadsafe(function, *args)
