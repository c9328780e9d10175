"""Runs embedding requests: computes the vectors of all clients' texts in batches, on a thread that owns the model.

    async with engine.submit(request) as job:  # may raise CapacityExceeded or ServerStopping
        vectors = await job.vectors()           # leaving early cancels the request before its next batch

Does not depend on gRPC or a tokenizer.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from inference_server.embedding.encoder import Encoder, PackedText, Vectors
from inference_server.embedding.job import EmbeddingJob, EmbeddingRequest
from inference_server.embedding.text_queue import TextQueue
from inference_server.engine.admission import Admission, CapacityLimits
from inference_server.engine.base import Totals
from inference_server.engine.histogram import STEP_TOKENS, Histogram
from inference_server.errors import GenerationFailed, ModelNotReady, ServerStopping, TailraceError

logger = logging.getLogger(__name__)

_Batch = list[tuple[EmbeddingJob, int]]


class EmbeddingEngine:
    """An embedding model and its requests. All public methods must be called on the event loop's thread.

    Has the properties of engine.base.BaseEngine that the server, the metrics and the watchdog read.

    Attributes:
        encoder: Computes the vectors.
        admission: Counts of the requests in flight.
        step_tokens: Distribution of the number of tokens in a batch.
        is_stalled: True if the engine has stopped making progress; set by the watchdog.
        num_slots: Number of requests in flight at which `utilization` is 1.
        num_blocks_in_use: 0: there is no KV cache.
        num_blocks: 1, so that the used share of the KV cache is 0.
        totals: Zeros: there is no prefix cache.
    """

    num_blocks_in_use = 0
    num_blocks = 1
    totals = Totals(0, 0, 0)

    def __init__(
        self,
        encoder: Encoder,
        *,
        limits: CapacityLimits,
        batch_tokens: int,
        on_broken: Callable[[], None] = lambda: None,
        on_thread: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the engine's thread.

        Args:
            encoder: Computes the vectors, on the engine's thread only.
            limits: Limits for requests in flight.
            batch_tokens: Largest number of tokens in a batch. A longer text is a batch by itself.
            on_broken: Called on the event loop after the model has failed permanently, or the engine was abandoned.
            on_thread: Called first on the engine's thread.
        """
        self.encoder = encoder
        self.admission = Admission(limits)
        self.step_tokens = Histogram(STEP_TOKENS)
        self.is_stalled = False
        self.num_slots = limits.slots
        self._batch_tokens = batch_tokens
        self._on_broken = on_broken
        self._on_thread = on_thread
        self._is_accepting = True
        self._jobs: set[EmbeddingJob] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_progress = time.monotonic()
        self._loop = asyncio.get_running_loop()
        # The queue is shared with the thread and protected by this condition.
        self._changed = threading.Condition()
        self._queue: TextQueue[EmbeddingJob] = TextQueue()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    @property
    def num_in_flight(self) -> int:
        """Requests that were accepted and have not ended."""
        return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Requests whose first batch has not begun."""
        return self.admission.num_waiting

    @property
    def num_waiting_batch(self) -> int:
        """0: embedding requests have one priority."""
        return 0

    @property
    def num_running(self) -> int:
        """Requests whose first batch has begun."""
        return self.num_in_flight - self.num_waiting

    @property
    def utilization(self) -> float:
        """Requests in flight divided by the slots; above 1 if there are more requests than slots."""
        return self.num_in_flight / self.num_slots

    @property
    def seconds_without_progress(self) -> float:
        """Seconds since a layer of a batch was last completed; 0 without requests in flight."""
        return time.monotonic() - self._last_progress if self._jobs else 0.0

    def check_capacity(self, account: str, *, num_tokens: int = 0, deadline_seconds: float | None = None) -> None:
        """Check whether `submit` would accept a request now. Lets the server reject it before its texts are tokenised.

        Args:
            account: Account of the client.
            num_tokens: Tokens of all texts; 0 if they are not known yet.
            deadline_seconds: Time until the client's deadline; None: no deadline.

        Raises:
            CapacityExceeded: The limits are reached.
            ServerStopping: The server is shutting down.
            ModelNotReady: The engine is stalled.
        """
        if not self._is_accepting:
            raise ServerStopping("this server is stopping")
        if self.is_stalled:
            raise ModelNotReady("the model does not respond at present")
        self.admission.check(account, num_tokens=num_tokens, deadline_seconds=deadline_seconds)

    def submit(self, request: EmbeddingRequest) -> EmbeddingJob:
        """Put the texts of a request into the wait queue.

        Raises:
            TailraceError: For the same reasons as `check_capacity`. The request then has no effect.
        """
        account, num_tokens = request.account, request.num_tokens
        self.check_capacity(account, num_tokens=num_tokens, deadline_seconds=request.deadline_seconds)
        if not self._jobs:
            self._last_progress = time.monotonic()
        job = EmbeddingJob(request, self.admission.enter(account, num_tokens), self._cancel)
        self._jobs.add(job)
        self._idle.clear()
        with self._changed:
            self._queue.add(job, account, [len(text.token_ids) for text in request.texts])
            self._changed.notify()
        return job

    async def drain(self) -> None:
        """Reject new requests, and wait until every accepted request has ended."""
        self._is_accepting = False
        await self._idle.wait()

    def abandon(self) -> None:
        """Fail all requests of an engine that is broken or stays stalled, and reject new ones."""
        self._is_accepting = False
        self._fail(list(self._jobs), GenerationFailed("the model failed"))
        self._on_broken()

    async def stop(self) -> None:
        """Stop the thread after its current batch, and fail the requests in flight with ServerStopping."""
        self._is_accepting = False
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        # A stalled thread may never return.
        await asyncio.to_thread(self._thread.join, 0.1 if self.is_stalled else 10.0)
        self._fail(list(self._jobs), ServerStopping("this server is stopping"))

    def _cancel(self, job: EmbeddingJob) -> None:
        with self._changed:
            self._queue.remove(job)
        self._forget(job)

    def _forget(self, job: EmbeddingJob) -> None:
        if not self.admission.leave(job.ticket):
            return
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()

    def _fail(self, jobs: list[EmbeddingJob], error: TailraceError) -> None:
        for job in jobs:
            job.fail(error)
            self._cancel(job)

    def _begun(self, batch: _Batch) -> None:
        for job, _ in batch:
            if job.started is None:
                job.started = time.monotonic()
                self.admission.admitted(job.ticket)

    def _finished(self, batch: _Batch, vectors: Vectors) -> None:
        self._last_progress = time.monotonic()
        for (job, place), vector in zip(batch, vectors, strict=True):
            if job.add(place, vector):
                self._forget(job)

    # The methods below run on the engine's thread.

    def _run(self) -> None:
        self._on_thread()
        while (batch := self._next_batch()) is not None:
            self._on_loop(self._begun, batch)
            try:
                texts = [job.request.texts[place] for job, place in batch]
                vectors = self.encoder.vectors(texts, self._record_progress)
            except Exception:
                logger.exception("a batch of %d texts failed", len(batch))
                failed = list({job for job, _ in batch})
                self._on_loop(self._fail, failed, GenerationFailed("the model failed on this request"))
                if self._is_broken():
                    self._on_loop(self.abandon)
                    return
                continue
            self.step_tokens.add(sum(len(job.request.texts[place].token_ids) for job, place in batch))
            if failed := list({job for (job, _), vector in zip(batch, vectors, strict=True) if not _is_finite(vector)}):
                logger.error("the vectors of %d requests are not finite", len(failed))
                self._on_loop(self._fail, failed, GenerationFailed("the model failed on this request"))
            self._on_loop(self._finished, batch, vectors)

    def _record_progress(self) -> None:
        # A text of 8,192 tokens can take longer on a CPU than the watchdog waits, so each layer counts as progress. The
        # event loop's thread writes this attribute too; the newest time is always the right one.
        self._last_progress = time.monotonic()

    def _is_broken(self) -> bool:
        """Return True if the model cannot compute even a single token any more."""
        try:
            self.encoder.vectors([PackedText([0], "mean", False)])
        except Exception:
            logger.exception("the model cannot embed a single token any more")
            return True
        return False

    def _next_batch(self) -> _Batch | None:
        """Wait for texts and return them, or None if the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._is_stopping)
            return None if self._is_stopping else self._queue.take(self._batch_tokens)

    def _on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no request remains
            self._loop.call_soon_threadsafe(function, *arguments)


def _is_finite(vector: NDArray[np.float32]) -> bool:
    """Return False if a model's numbers have exceeded the range of its precision."""
    return bool(np.isfinite(vector).all())
