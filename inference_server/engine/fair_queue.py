"""Who waits for a slot, and whose turn it is: the account that has fewest, equals one after the other.

Within an account it is first come, first served. So an account's thousand requests do not keep another's one from the next
slot. Knows accounts; knows nothing of blocks.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping

from inference_server.engine.sequence import Sequence


class WaitingRoom:
    """What was sent back from a slot comes before everything else, whoever's it is: it has had its turn already."""

    def __init__(self) -> None:
        self._returned: deque[Sequence] = deque()
        self._by_account: OrderedDict[str, deque[Sequence]] = OrderedDict()  # next turn first; none is empty

    def __len__(self) -> int:
        return len(self._returned) + sum(map(len, self._by_account.values()))

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._returned
        for queue in self._by_account.values():
            yield from queue

    def add(self, seq: Sequence) -> None:
        """At the end of its account's queue; an account that had none has its turn after all others."""
        self._by_account.setdefault(seq.request.account, deque()).append(seq)

    def put_back(self, seq: Sequence) -> None:
        """Before everybody."""
        self._returned.appendleft(seq)

    def next(self, running: Mapping[str, int], at_most: int | None = None) -> Sequence | None:
        """Of the accounts that run fewest and fewer than `at_most`, the one whose turn it is; it stays until `take`.

        running: sequences by account, 0 for one that has none.
        """
        if self._returned:
            return self._returned[0]
        accounts = [account for account in self._by_account if at_most is None or running[account] < at_most]
        return self._by_account[min(accounts, key=running.__getitem__)][0] if accounts else None

    def take(self, seq: Sequence) -> None:
        """Remove what `next` returned; its account's turn is over."""
        if self._returned and self._returned[0] is seq:
            self._returned.popleft()
            return
        account = seq.request.account
        self.remove(seq)
        if account in self._by_account:
            self._by_account.move_to_end(account)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence that waits; one that does not is ignored."""
        account = seq.request.account
        for queue in (self._returned, self._by_account.get(account, self._returned)):
            if seq in queue:
                queue.remove(seq)
        if account in self._by_account and not self._by_account[account]:
            del self._by_account[account]
