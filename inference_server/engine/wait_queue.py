"""Wait queue of an engine: interactive requests before batch requests, and fair across accounts in each priority."""

from collections import Counter
from collections.abc import Iterable, Iterator

from inference_server.engine.fair_queue import FairQueue
from inference_server.engine.sequence import Sequence


class RunningCounts:
    """Number of running sequences of each account.

    Attributes:
        interactive: Sequences of interactive requests by account.
        batch: Sequences of batch requests by account.
    """

    def __init__(self, running: Iterable[Sequence] = ()) -> None:
        """Count the sequences in `running`."""
        self.interactive: Counter[str] = Counter()
        self.batch: Counter[str] = Counter()
        for seq in running:
            self.change(seq, 1)

    def change(self, seq: Sequence, number: int) -> None:
        """Add `number`, which may be negative, to the count of the sequence's account."""
        (self.batch if seq.request.is_batch else self.interactive)[seq.request.account] += number


class WaitQueue:
    """Sequences that wait for a slot. A batch request comes next only if no interactive request can get a slot."""

    def __init__(self, *, max_account_seqs: int | None = None, max_batch_seqs: int | None = None) -> None:
        """Create an empty queue.

        Args:
            max_account_seqs: Largest number of running sequences of one account and one priority; None: any number.
            max_batch_seqs: Largest number of running sequences of all batch requests; None: any number.
        """
        self._interactive, self._batch = FairQueue(), FairQueue()
        self._max_account_seqs, self._max_batch_seqs = max_account_seqs, max_batch_seqs

    def __len__(self) -> int:
        return len(self._interactive) + len(self._batch)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._interactive
        yield from self._batch

    def add(self, seq: Sequence) -> None:
        """Append a sequence to the queue of its priority and account."""
        self._queue_of(seq).add(seq)

    def requeue(self, seq: Sequence) -> None:
        """Put a preempted sequence before all others of its priority."""
        self._queue_of(seq).requeue(seq)

    def peek(self, running: RunningCounts) -> Sequence | None:
        """Return the next sequence without removing it, or None. `running`: counts of the sequences with a slot."""
        seq = self._interactive.peek(running.interactive, self._max_account_seqs)
        if seq is not None or not self._batch:
            return seq
        if self._max_batch_seqs is not None and running.batch.total() >= self._max_batch_seqs:
            return None
        return self._batch.peek(running.batch, self._max_account_seqs)

    def pop(self, seq: Sequence) -> None:
        """Remove the sequence that `peek` returned. See FairQueue.pop."""
        self._queue_of(seq).pop(seq)

    def remove(self, seq: Sequence) -> None:
        """Remove a waiting sequence. Has no effect if the sequence does not wait."""
        self._queue_of(seq).remove(seq)

    def _queue_of(self, seq: Sequence) -> FairQueue:
        return self._batch if seq.request.is_batch else self._interactive
