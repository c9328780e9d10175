"""Implements the engine that computes tokens in vLLM's processes. All code of this module runs on the event loop.

vLLM gets at most as many requests as there are slots. The other requests wait in this module's wait queue. Batch requests
get only some of the slots, and are not preempted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Set
from contextlib import aclosing
from functools import partial
from typing import Any

from inference_server.engine.admission import CapacityLimits
from inference_server.engine.base import BaseEngine, Totals
from inference_server.engine.histogram import Histogram
from inference_server.engine.reply import Reply
from inference_server.engine.sequence import Sequence
from inference_server.engine.vllm.client import VllmClient
from inference_server.engine.vllm.sampling_params import check_sampling, token_logprob
from inference_server.engine.wait_queue import RunningCounts, WaitQueue
from inference_server.errors import GenerationFailed, ServerStopping
from inference_server.generation import Event, Failed, FinishReason, GenerationRequest, Started, TextStream

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
# Time for vLLM's processes to end before they are killed.
_STOP_SECONDS = 5.0


class VllmEngine(BaseEngine):
    """Engine that runs a model in vLLM's processes."""

    def __init__(
        self, client: VllmClient, *, limits: CapacityLimits, on_broken: Callable[[], None] = lambda: None
    ) -> None:
        """Create the engine for a running vLLM.

        Args:
            client: The running vLLM.
            limits: Limits for requests in flight. At most `slots` requests run in vLLM.
            on_broken: Called on the event loop after vLLM's processes have ended, or after `abandon`.
        """
        super().__init__(limits, on_broken)
        self._client = client
        self._slots = limits.slots
        self._waiting = WaitQueue(max_account_seqs=limits.account_slots, max_batch_seqs=limits.batch_slots)
        self._seqs: dict[Reply, Sequence] = {}
        self._tasks: dict[Sequence, asyncio.Task[None]] = {}  # sequences with a slot
        self._time_limits: dict[Sequence, asyncio.TimerHandle] = {}
        self._num_admitted = 0
        self._is_broken = False
        client.steps.on_step = self._record_progress
        self._polling = asyncio.create_task(self._poll())

    @property
    def path(self) -> str:
        return "vLLM"

    @property
    def vocab_size(self) -> int:
        return self._client.vocab_size

    @property
    def num_running(self) -> int:
        return len(self._tasks)

    @property
    def num_slots(self) -> int:
        return self._slots

    @property
    def preempts_batch(self) -> bool:
        return False

    @property
    def num_blocks(self) -> int:
        return self._client.num_blocks

    @property
    def num_blocks_in_use(self) -> int:
        return round(self._client.steps.cache_usage * self._client.num_blocks)

    @property
    def totals(self) -> Totals:
        steps = self._client.steps
        return Totals(steps.num_queried_tokens, steps.num_hit_tokens, steps.num_preemptions)

    @property
    def step_tokens(self) -> Histogram:
        return self._client.steps.tokens

    def submit(self, request: GenerationRequest, text: TextStream) -> Reply:
        """Submit a request; see BaseEngine.submit. Raises InvalidField for parameters that vLLM does not support."""
        check_sampling(request.sampling)
        return super().submit(request, text)

    async def stop(self) -> None:
        """Stop vLLM's processes, and fail the requests in flight with ServerStopping."""
        self._is_accepting = False
        self._polling.cancel()
        self._fail_all(ServerStopping("this server is stopping"))
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await asyncio.to_thread(self._client.shut_down, 0.1 if self.is_stalled else _STOP_SECONDS)

    def _add(self, seq: Sequence) -> None:
        self._seqs[seq.reply] = seq
        seq.num_admitted_before = self._num_admitted
        self._waiting.add(seq)
        if (seconds := seq.request.time_limit_seconds) is not None:
            self._time_limits[seq] = asyncio.get_running_loop().call_later(seconds, self._expire, seq)
        self._fill_slots()

    def _cancel(self, reply: Reply) -> None:
        self._forget(reply)

    def _forget(self, reply: Reply) -> None:
        """Remove a reply that has ended for any reason, and stop its computation."""
        if (seq := self._seqs.pop(reply, None)) is not None:
            self._waiting.remove(seq)
            if (timer := self._time_limits.pop(seq, None)) is not None:
                timer.cancel()
            task = self._tasks.get(seq)
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        super()._forget(reply)

    def _break(self) -> None:
        if not self._is_broken:
            self._is_broken = True
            super()._break()

    def _fill_slots(self) -> None:
        counts = RunningCounts(self._tasks)
        while len(self._tasks) < self._slots:
            seq = self._waiting.peek(counts)
            if seq is None:
                return
            self._waiting.pop(seq)
            counts.change(seq, 1)
            self._num_admitted += 1
            seq.admission_position = self._num_admitted - seq.num_admitted_before
            seq.admitted = time.monotonic()
            self._deliver(
                [(seq.reply, Started(seq.num_prompt_tokens, seq.request.sampling.seed, seq.admission_position))]
            )
            self._tasks[seq] = task = asyncio.create_task(self._run(seq))
            task.add_done_callback(partial(self._leave_slot, seq))

    def _leave_slot(self, seq: Sequence, _: asyncio.Task[None]) -> None:
        del self._tasks[seq]
        self._fill_slots()

    async def _run(self, seq: Sequence) -> None:
        """Deliver vLLM's tokens until the reply has ended."""
        try:
            async with aclosing(self._client.generate(seq.request)) as outputs:
                async for output in outputs:
                    self._record_progress()
                    self._deliver([(seq.reply, event) for event in _events(seq, output, self._client.end_ids)])
                    if seq.reply not in self._seqs:
                        return
            raise RuntimeError("vLLM ended the request without a last token")
        except Exception:
            if self._client.is_dead:
                self._break()
                return
            # Clients get an answer after any exception, and the other sequences continue.
            logger.exception("vLLM failed on request %s", seq.request.request_id)
            self._deliver([(seq.reply, Failed(GenerationFailed("the model failed on this request")))])

    def _expire(self, seq: Sequence) -> None:
        events = seq.last_events(FinishReason.TIME_LIMIT, seq.text.finish(), time.monotonic())
        self._deliver([(seq.reply, event) for event in events])

    def _record_progress(self) -> None:
        self._last_progress = time.monotonic()

    async def _poll(self) -> None:
        """Wait until vLLM's processes end, which may happen while no request runs, and fail the engine."""
        while not self._client.is_dead:  # noqa: ASYNC110 (vLLM has no event for it)
            await asyncio.sleep(_POLL_SECONDS)
        logger.critical("vLLM's processes have ended")
        self._break()


def _events(seq: Sequence, output: Any, end_ids: Set[int]) -> Iterator[Event]:
    """Yield the events of one output's tokens, with Completed last if the reply ends."""
    completion, now, text = output.outputs[0], time.monotonic(), ""
    if seq.first_token is None:
        seq.num_cached_tokens = output.num_cached_tokens or 0
    num_top = seq.request.sampling.logprobs
    for index, token_id in enumerate(completion.token_ids):
        logprob = None
        if num_top is not None:
            logprob = token_logprob(token_id, completion.logprobs[index], num_top)
        piece, reason = seq.append(token_id, logprob, end_ids, now)
        text += piece
        if reason is not None:
            yield from seq.last_events(reason, text, now)
            return
    if text:
        yield seq.take_delta(text)
