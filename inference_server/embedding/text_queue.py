"""Orders the texts that wait for a batch: round-robin across accounts, first come, first served within an account.

Each batch takes one text from each account in turn. So a request with one text does not wait for the two thousand texts
of another account. Does not depend on tensors.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

JobT = TypeVar("JobT")


class _Waiting(Generic[JobT]):
    """A job with the lengths of its texts in tokens. `next`: index of the first text that is not in a batch yet."""

    __slots__ = ("job", "lengths", "next")

    def __init__(self, job: JobT, lengths: list[int]) -> None:
        self.job = job
        self.lengths = lengths
        self.next = 0


class TextQueue(Generic[JobT]):
    """Wait queue of texts. A job is any object that identifies a request."""

    def __init__(self) -> None:
        """Create an empty queue."""
        # A queue of jobs for each account, in round-robin order. Empty queues are removed.
        self._by_account: OrderedDict[str, deque[_Waiting[JobT]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_account)

    def add(self, job: JobT, account: str, lengths: list[int]) -> None:
        """Append all texts of a job. `lengths`: number of tokens of each text; at least one text."""
        self._by_account.setdefault(account, deque()).append(_Waiting(job, lengths))

    def remove(self, job: JobT) -> None:
        """Remove the texts of a job that are in no batch yet. Has no effect if there are none."""
        for account, queue in list(self._by_account.items()):
            for waiting in [each for each in queue if each.job is job]:
                queue.remove(waiting)
            if not queue:
                del self._by_account[account]

    def take(self, max_tokens: int) -> list[tuple[JobT, int]]:
        """Remove and return the texts of the next batch, as pairs of a job and the text's index in it.

        Args:
            max_tokens: Largest number of tokens in the batch. A longer text is a batch by itself.
        """
        return list(self._take(max_tokens))

    def _take(self, room: int) -> Iterator[tuple[JobT, int]]:
        is_first = True
        while self._by_account:
            account, queue = next(iter(self._by_account.items()))
            waiting = queue[0]
            length = waiting.lengths[waiting.next]
            if length > room and not is_first:
                return
            yield waiting.job, waiting.next
            is_first, room = False, room - length
            waiting.next += 1
            if waiting.next == len(waiting.lengths):
                queue.popleft()
            self._by_account.move_to_end(account)
            if not queue:
                del self._by_account[account]
