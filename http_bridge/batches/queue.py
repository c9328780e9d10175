"""Runs batches in the background, and stores their results in bounded memory. Does not depend on HTTP or gRPC.

Scheduling is round-robin across batches, so a large batch does not delay the first requests of a later one. If a
request is refused for lack of capacity, its batch pauses, and the request is repeated until the batch's time is over.
"""

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Sequence

from http_bridge.batches.batch import Batch, Request, Result
from http_bridge.batches.limits import Limits
from http_bridge.errors import ApiError, internal_error
from http_bridge.observability.metrics import BatchState, BatchStatus, Metrics

# Pauses in seconds before a refused batch continues: the first one, and the longest one.
FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0
# Statuses after which a request is repeated: too many requests, no capacity, no server.
_MAY_REPEAT = (429, 503)
_FULL_RETRY_SECONDS = 30
logger = logging.getLogger(__name__)


class BatchQueue:
    """The batches of one bridge. Create it inside the event loop that uses it."""

    def __init__(self, limits: Limits, metrics: Metrics | None = None) -> None:
        self._limits = limits
        self._metrics = metrics
        self._batches: dict[str, Batch] = {}
        self._turns: deque[Batch] = deque()  # batches that have waiting requests and are not paused, next one first
        self._running: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}  # timers that remove finished batches, by batch id
        self._pauses: dict[str, asyncio.TimerHandle] = {}  # timers that end the pauses of refused batches
        self._size = 0
        if metrics is not None:
            metrics.watch_batches(self.count, self.count_requests)

    def count(self, status: BatchStatus) -> int:
        """Return the number of batches with this status."""
        return sum(batch.status == status for batch in self._batches.values())

    def count_requests(self, state: BatchState) -> int:
        """Return the number of requests in this state."""
        return len(self._running) if state == "running" else sum(len(batch.waiting) for batch in self._batches.values())

    def check_size(self, num_requests: int, num_bytes: int = 0) -> None:
        """Check the size of a batch.

        Raises:
            ApiError: 413/3006 if it has too many requests or bytes for an empty queue, 400/5006 if batches are switched off.
        """
        if not self._limits.max_batches:
            raise ApiError(400, 5006, "Bad input: Error: batches are switched off here: send each request by itself")
        if num_requests > self._limits.max_requests:
            raise ApiError(
                413, 3006, f"Request is too large (more than {self._limits.max_requests} requests in a batch)"
            )
        if num_bytes > self._limits.max_bytes:
            raise ApiError(413, 3006, f"Request is too large (more than {self._limits.max_bytes} bytes in a batch)")

    def submit(self, requests: Sequence[Request], *, account: str, model: str) -> Batch:
        """Queue a batch and return it. Invalid requests already have an outcome.

        Raises:
            ApiError: 400/5006 if batches are switched off, 413/3006 for too many requests, 429/3040 if the queue is full.
        """
        self.check_size(len(requests))
        now = asyncio.get_running_loop().time()
        batch = Batch(
            id=str(uuid.uuid4()),
            account=account,
            model=model,
            requests=requests,
            began_at=now,
            deadline=now + self._limits.timeout_seconds,
        )
        self._make_room(batch.size)
        self._batches[batch.id] = batch
        self._size += batch.size
        for request in requests:
            if request.outcome is not None:
                self._count(request.outcome)
        if batch.waiting:
            self._turns.append(batch)
            self._fill()
        else:
            self._finish(batch)
        return batch

    def find(self, batch_id: str, *, account: str, model: str) -> Batch | None:
        """Return the batch of this account and model with this id; None if there is none."""
        batch = self._batches.get(batch_id)
        return batch if batch is not None and (batch.account, batch.model) == (account, model) else None

    async def close(self) -> None:
        """Cancel every running request, drop all batches, and log how many requests and results are lost."""
        num_open = sum(batch.num_open for batch in self._batches.values())
        num_unread = sum(not batch.num_open and not batch.was_read for batch in self._batches.values())
        for timer in (*self._timers.values(), *self._pauses.values()):
            timer.cancel()
        tasks = tuple(self._running)
        self._turns.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if num_open or num_unread:
            logger.warning(
                "batches are kept in memory: %d unfinished requests of batches and the unread results of %d finished batches "
                "are lost",
                num_open,
                num_unread,
            )
        self._batches.clear()

    def _make_room(self, size: int) -> None:
        """Drop the oldest batches whose results a client has read, until a batch of `size` bytes fits.

        Raises:
            ApiError: 429/3040 if it does not fit even then.
        """
        for batch in [batch for batch in self._batches.values() if batch.was_read and not batch.num_open]:
            if self._has_room(size):
                return
            self._forget(batch)
        if not self._has_room(size):
            raise ApiError(
                429,
                3040,
                "Capacity temporarily exceeded, please try again: the batch queue is full.",
                retry_after_seconds=_FULL_RETRY_SECONDS,
            )

    def _has_room(self, size: int) -> bool:
        return len(self._batches) < self._limits.max_batches and self._size + size <= self._limits.max_bytes

    def _fill(self) -> None:
        while self._turns and len(self._running) < self._limits.parallel:
            batch = self._turns.popleft()
            index = batch.waiting.popleft()
            if batch.waiting:
                self._turns.append(batch)
            batch.is_started = True
            task = asyncio.create_task(self._run(batch, index))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._fill()

    async def _run(self, batch: Batch, index: int) -> None:
        work = batch.requests[index].work
        assert work is not None
        outcome: Result | ApiError
        left = batch.deadline - asyncio.get_running_loop().time()
        try:
            if left <= 0:
                raise ApiError(408, 3007, "Request timeout")
            outcome = await work.run(f"{batch.id}-{index}", left)
            batch.pause_seconds = 0.0
        except ApiError as error:
            if error.status in _MAY_REPEAT:
                self._pause(batch, index, error)
                return
            outcome = error
        except Exception:
            logger.exception("request %d of batch %s failed", index, batch.id)
            outcome = internal_error()
        if isinstance(outcome, Result) and self._size + len(outcome.body) - work.size > self._limits.max_bytes:
            outcome = ApiError(
                413, 3006, "Request is too large: there is no room for its result among the kept batches"
            )
        self._end(batch, index, outcome)

    def _pause(self, batch: Batch, index: int, refusal: ApiError) -> None:
        """Put a refused request back, and let the requests of other batches run until the next attempt."""
        batch.waiting.appendleft(index)
        if batch.id in self._pauses:
            return
        if batch in self._turns:
            self._turns.remove(batch)
        loop = asyncio.get_running_loop()
        batch.pause_seconds = min(max(2 * batch.pause_seconds, FIRST_PAUSE), _LONGEST_PAUSE)
        pause = max(batch.pause_seconds, min(refusal.retry_after_seconds or 0, _LONGEST_PAUSE))
        self._pauses[batch.id] = loop.call_later(
            min(pause, max(0.0, batch.deadline - loop.time())), self._resume, batch
        )

    def _resume(self, batch: Batch) -> None:
        del self._pauses[batch.id]
        self._turns.append(batch)
        self._fill()

    def _end(self, batch: Batch, index: int, outcome: Result | ApiError) -> None:
        self._size += batch.end(index, outcome)
        self._count(outcome)
        if not batch.num_open:
            self._finish(batch)

    def _count(self, outcome: Result | ApiError) -> None:
        if self._metrics is not None:
            self._metrics.batch_requests_ended.labels("error" if isinstance(outcome, ApiError) else "success").inc()

    def _finish(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        self._timers[batch.id] = loop.call_later(self._limits.keep_seconds, self._forget, batch)
        logger.info(
            "batch %(batch_id)s: %(num_requests)d requests, %(num_failed)d failed, after %(total_seconds).2f s",
            {
                "batch_id": batch.id,
                "account": batch.account or None,
                "model": batch.model,
                "num_requests": len(batch.requests),
                "num_failed": batch.num_failed,
                "total_seconds": round(loop.time() - batch.began_at, 6),
            },
        )

    def _forget(self, batch: Batch) -> None:
        if self._batches.pop(batch.id, None) is not None:
            self._size -= batch.size
        if (timer := self._timers.pop(batch.id, None)) is not None:
            timer.cancel()
