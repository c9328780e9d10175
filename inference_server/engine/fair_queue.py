"""Orders the sequences that wait for a slot: fair (round-robin) scheduling across accounts.

The next sequence belongs to the account with the fewest running sequences, round-robin on ties. Within an account the
order is first come, first served. So a burst from one account delays the next request of another account by at most one
admission.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping

from inference_server.engine.sequence import Sequence


class FairQueue:
    """Wait queue with round-robin scheduling. Preempted sequences of any account come before all others."""

    def __init__(self) -> None:
        """Create an empty queue."""
        self._preempted: deque[Sequence] = deque()
        # The queue of each account, in round-robin order. An account without waiting sequences has no entry.
        self._by_account: OrderedDict[str, deque[Sequence]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._preempted) + sum(map(len, self._by_account.values()))

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        for queue in self._by_account.values():
            yield from queue

    def add(self, seq: Sequence) -> None:
        """Append a sequence to its account's queue. An account without a queue goes to the end of the round."""
        self._by_account.setdefault(seq.request.account, deque()).append(seq)

    def requeue(self, seq: Sequence) -> None:
        """Put a preempted sequence before all others."""
        self._preempted.appendleft(seq)

    def peek(self, running: Mapping[str, int], max_running: int | None = None) -> Sequence | None:
        """Return the next sequence without removing it, or None.

        Args:
            running: Number of running sequences by account. Must return 0 for an account without running sequences.
            max_running: Running sequences that an account may have; None: any number. Preempted sequences ignore this
                limit.
        """
        if self._preempted:
            return self._preempted[0]
        accounts = [account for account in self._by_account if max_running is None or running[account] < max_running]
        return self._by_account[min(accounts, key=running.__getitem__)][0] if accounts else None

    def pop(self, seq: Sequence) -> None:
        """Remove the sequence that `peek` returned.

        Its account moves to the end of the round, unless the sequence was preempted.
        """
        if self._preempted and self._preempted[0] is seq:
            self._preempted.popleft()
            return
        account = seq.request.account
        self.remove(seq)
        if account in self._by_account:
            self._by_account.move_to_end(account)

    def remove(self, seq: Sequence) -> None:
        """Remove a waiting sequence. Has no effect if the sequence does not wait."""
        account = seq.request.account
        for queue in (self._preempted, self._by_account.get(account, self._preempted)):
            if seq in queue:
                queue.remove(seq)
        if account in self._by_account and not self._by_account[account]:
            del self._by_account[account]
