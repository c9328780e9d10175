"""An engine whose tokens vLLM computes, in processes of its own. Everything here is on the event loop.

vLLM is given as many requests as there are slots and no more: who waits, waits here, where accounts have their turns.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Set
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

from inference_server.engine.admission import Room
from inference_server.engine.base import BaseEngine, Totals
from inference_server.engine.fair_queue import WaitingRoom
from inference_server.engine.histogram import Tally
from inference_server.engine.reply import Reply
from inference_server.engine.sequence import Sequence
from inference_server.engine.vllm.sampling_params import check_sampling, token_logprob
from inference_server.engine.vllm.step_stats import Steps
from inference_server.errors import GenerationFailed, ServerStopping
from inference_server.generation import Event, Failed, FinishReason, GenerationRequest, Started, TextStream

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
# How long vLLM's processes get to end by themselves.
_STOP_SECONDS = 5.0


class Client(Protocol):
    """What is needed of VllmClient."""

    steps: Steps
    vocab_size: int
    num_blocks: int

    @property
    def end_ids(self) -> Set[int]: ...
    @property
    def is_dead(self) -> bool: ...
    def generate(self, request: GenerationRequest) -> AsyncGenerator[Any, None]: ...
    def shut_down(self, seconds: float) -> None: ...


class VllmEngine(BaseEngine):
    def __init__(self, client: Client, *, room: Room, on_broken: Callable[[], None] = lambda: None) -> None:
        super().__init__(room, on_broken)
        self._client = client
        self._slots, self._account_slots = room.slots, room.account_slots
        self._waiting = WaitingRoom()
        self._seqs: dict[Reply, Sequence] = {}
        self._tasks: dict[Sequence, asyncio.Task[None]] = {}  # of those that have a slot
        self._time_limits: dict[Sequence, asyncio.TimerHandle] = {}
        self._num_admitted = 0
        self._is_broken = False
        client.steps.on_step = self._progressed
        self._looking = asyncio.create_task(self._look())

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
    def step_tokens(self) -> Tally:
        return self._client.steps.tokens

    def submit(self, request: GenerationRequest, text: TextStream) -> Reply:
        """Raises InvalidField too, for what vLLM does not do."""
        check_sampling(request.sampling)
        return super().submit(request, text)

    async def stop(self) -> None:
        """End vLLM's processes; what still runs fails with ServerStopping."""
        self._is_accepting = False
        self._looking.cancel()
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
        """It has ended, in whatever way: nothing more is computed for it."""
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
        by_account = Counter(seq.request.account for seq in self._tasks)
        while len(self._tasks) < self._slots:
            seq = self._waiting.next(by_account, self._account_slots)
            if seq is None:
                return
            self._waiting.take(seq)
            by_account[seq.request.account] += 1
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
        """Pass on what vLLM generates, until the reply has ended."""
        try:
            async with aclosing(self._client.generate(seq.request)) as outputs:
                async for output in outputs:
                    self._progressed()
                    self._deliver([(seq.reply, event) for event in _events(seq, output, self._client.end_ids)])
                    if seq.reply not in self._seqs:
                        return
            raise RuntimeError("vLLM gave no more outputs")
        except Exception:
            if self._client.is_dead:
                self._break()
                return
            # Whatever it is, the caller gets an answer and the other sequences go on.
            logger.exception("vLLM failed on request %s", seq.request.request_id)
            self._deliver([(seq.reply, Failed(GenerationFailed("the model failed on this request")))])

    def _expire(self, seq: Sequence) -> None:
        events = seq.last_events(FinishReason.TIME_LIMIT, seq.text.finish(), time.monotonic())
        self._deliver([(seq.reply, event) for event in events])

    def _progressed(self) -> None:
        self._last_progress = time.monotonic()

    async def _look(self) -> None:
        """Processes can end while nobody asks them for anything."""
        while not self._client.is_dead:  # noqa: ASYNC110 (vLLM has no event for it)
            await asyncio.sleep(_LOOK_SECONDS)
        logger.critical("vLLM's processes have ended")
        self._break()


def _events(seq: Sequence, output: Any, end_ids: Set[int]) -> Iterator[Event]:
    """What the tokens of one output bring; ends with Completed where the reply does."""
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
