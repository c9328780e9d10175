"""The one thread that owns a model: commands in, steps, events out to asyncio.

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

from inference_server.attention.kv_cache import NUM_SCRATCH_BLOCKS
from inference_server.engine.admission import Room
from inference_server.engine.base import BaseEngine, Reply, Totals
from inference_server.engine.histogram import Tally
from inference_server.engine.native.block_pool import BlockPool
from inference_server.engine.native.scheduler import Policy, Scheduler
from inference_server.engine.native.step_loop import Stepper
from inference_server.engine.sequence import Event, Sequence
from inference_server.errors import ServerStopping
from inference_server.model.runner import ModelRunner

logger = logging.getLogger(__name__)

_Command = Callable[[], None]


class Engine(BaseEngine):
    """Continuous batching for one model."""

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
        super().__init__(room, on_broken)
        self.runner = runner
        cache = runner.cache
        pool = BlockPool(
            num_blocks=cache.num_blocks - NUM_SCRATCH_BLOCKS,
            block_size=cache.block_size,
            num_reserved=NUM_SCRATCH_BLOCKS,
            max_unused_blocks=max_unused_blocks,
        )
        self.scheduler = Scheduler(pool, policy)
        self._stepper = Stepper(runner, self.scheduler, end_ids, self._emit)
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._emitted: list[tuple[Reply, Event]] = []  # the thread's own, until published
        # _last_progress is written by both threads: the newest counts.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its step; what still runs fails with ServerStopping."""
        self._is_accepting = False
        self._commands.put(None)
        # A thread that hangs does not come back.
        await asyncio.to_thread(self._thread.join, 0.1 if self.is_stalled else 10.0)
        self._fail_all(ServerStopping("this server is stopping"))

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
        scheduler = self.scheduler
        return Totals(scheduler.num_queried_tokens, scheduler.num_hit_tokens, scheduler.num_preemptions)

    @property
    def step_tokens(self) -> Tally:
        return self._stepper.step_tokens

    @property
    def num_slots(self) -> int:
        return self.scheduler.max_running

    def _add(self, seq: Sequence) -> None:
        self._commands.put(lambda: self.scheduler.add(seq))

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
