"""Who waits for a slot, and whose turn it is: accounts in turn, and within an account first come, first served.

So an account's thousand requests delay another account's one by a single turn. Knows accounts; knows nothing of blocks.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from inference_server.sequence import Sequence


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

    def next(self, may_run: Callable[[str], bool]) -> Sequence | None:
        """Whose turn it is among the accounts that may run one more; it stays here until `take`."""
        if self._returned:
            return self._returned[0]
        return next((queue[0] for account, queue in self._by_account.items() if may_run(account)), None)

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
