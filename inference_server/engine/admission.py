"""Who may come in, decided on the event loop before anything is done: room, deadlines, and how long to stay away.

Counts what is in flight and measures how fast requests leave. Knows accounts, tokens and times (seconds of
time.monotonic); knows nothing of the model or of gRPC.
"""

import time
from collections import Counter
from dataclasses import dataclass

from inference_server.errors import CapacityExceeded

# A client is told to come back after so many seconds at least, and at most.
_LEAST_RETRY, _MOST_RETRY = 1.0, 60.0
# Of the newest interval between two ends in their moving average.
_WEIGHT = 0.2
# Ends that must have been seen before an estimate refuses anybody.
_ENOUGH_ENDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much may be in flight: sequences that run, and requests with so many prompt tokens that wait for it."""

    slots: int
    waiting_seqs: int
    waiting_tokens: int
    account_slots: int | None = None


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that was let in. It waits until it is admitted to a slot."""

    account: str
    num_tokens: int
    is_waiting: bool = True


class Admission:
    def __init__(self, room: Room) -> None:
        self._room = room
        self._tickets: set[Ticket] = set()
        self._by_account: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()  # requests by account
        self._waiting_tokens = 0
        self._seconds_per_end = 1.0  # between two ends, while requests wait
        self._num_ends = 0
        self._last_end = time.monotonic()

    @property
    def num_in_flight(self) -> int:
        return len(self._tickets)

    @property
    def num_waiting(self) -> int:
        return self._waiting.total()

    def check(
        self, account: str, *, num_tokens: int = 0, reject_if_busy: bool = False, deadline_seconds: float | None = None
    ) -> None:
        """Raises CapacityExceeded. `num_tokens`: of the prompt; `deadline_seconds`: until the caller gives up."""
        room, waiting = self._room, self.num_in_flight - self._room.slots
        if reject_if_busy and (waiting >= 0 or self._is_at_cap(account)):
            raise self._full("no slot is free and the request would not wait")
        # One account that fills the room must not keep out another that has nothing yet: for those there is as much again.
        most = room.waiting_seqs * (1 if self._by_account[account] else 2)
        if waiting >= most:
            raise self._full("the waiting room is full")
        # A prompt that would wait alone is let in however long it is.
        if self._waiting_tokens and self._waiting_tokens + num_tokens > room.waiting_tokens:
            raise self._full("the waiting room holds as many prompt tokens as it may")
        if deadline_seconds is not None and waiting >= 0 and self._num_ends >= _ENOUGH_ENDS:
            expected = (self._num_ahead(account) + 1) * self._seconds_per_end
            if expected > deadline_seconds:
                raise self._full("its first token would come after its deadline", expected - deadline_seconds)

    def enter(self, account: str, num_tokens: int) -> Ticket:
        ticket = Ticket(account, num_tokens)
        self._tickets.add(ticket)
        self._by_account[account] += 1
        self._waiting[account] += 1
        self._waiting_tokens += num_tokens
        return ticket

    def admitted(self, ticket: Ticket) -> None:
        """It has a slot now. A second call does nothing."""
        if ticket.is_waiting and ticket in self._tickets:
            ticket.is_waiting = False
            self._waiting_tokens -= ticket.num_tokens
            _decrease(self._waiting, ticket.account)

    def leave(self, ticket: Ticket) -> bool:
        """It has ended, in whatever way. False if it had before."""
        if ticket not in self._tickets:
            return False
        now = time.monotonic()
        if self.num_in_flight > self._room.slots:
            self._seconds_per_end += _WEIGHT * (now - self._last_end - self._seconds_per_end)
            self._num_ends += 1
        self._last_end = now
        self.admitted(ticket)
        self._tickets.discard(ticket)
        _decrease(self._by_account, ticket.account)
        return True

    def _is_at_cap(self, account: str) -> bool:
        most = self._room.account_slots
        return most is not None and self._by_account[account] >= most

    def _num_ahead(self, account: str) -> int:
        """Requests that get a slot before the account's next one: accounts have their turns one after the other."""
        own = self._waiting[account]
        return own + sum(min(count, own + 1) for other, count in self._waiting.items() if other != account)

    def _full(self, sentence: str, seconds: float | None = None) -> CapacityExceeded:
        seconds = self._seconds_per_end if seconds is None else seconds
        return CapacityExceeded(sentence, retry_after_seconds=min(max(seconds, _LEAST_RETRY), _MOST_RETRY))


def _decrease(counts: Counter[str], account: str) -> None:
    # Accounts are what callers write: those without a request leave nothing behind.
    counts[account] -= 1
    if not counts[account]:
        del counts[account]
