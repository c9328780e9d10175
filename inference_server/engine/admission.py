"""Admission control: decides on the event loop whether the engine accepts a request, before any work is done for it.

Counts requests in flight and measures the rate at which they leave. Interactive requests and batch requests have one
Admission each. This module works with accounts, token counts and times in seconds of time.monotonic(). It does not depend
on the model or on gRPC.
"""

import time
from collections import Counter
from dataclasses import dataclass

from inference_server.errors import CapacityExceeded

# Bounds of the delay that a refused client is asked to wait before a retry, in seconds.
_MIN_RETRY, _MAX_RETRY = 1.0, 60.0
# Weight of the newest interval between two completions in the moving average.
_WEIGHT = 0.2
# Number of measured intervals between completions before an estimated wait can reject a request.
_MIN_ENDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityLimits:
    """Limits for the requests in flight. Interactive and batch requests wait in separate queues.

    Attributes:
        slots: Sequences that may run at the same time.
        waiting_seqs: Requests of one priority that may wait for a slot; twice as many for an account without requests.
        waiting_tokens: Total prompt tokens of one priority that may wait; a single prompt may exceed this limit.
        account_slots: Sequences of one account and one priority that may run at the same time; None: all slots.
        batch_slots: Sequences of batch requests that may run at the same time; None: all slots.
    """

    slots: int
    waiting_seqs: int
    waiting_tokens: int
    account_slots: int | None = None
    batch_slots: int | None = None


@dataclass(eq=False, slots=True)
class AdmissionTicket:
    """An accepted request, as counted by its Admission.

    Attributes:
        admission: The Admission that counts the request.
        account: Account of the client.
        num_tokens: Length of the prompt in tokens.
        is_waiting: True until the request gets a slot.
    """

    admission: "Admission"
    account: str
    num_tokens: int
    is_waiting: bool = True


class Admission:
    """Admission control for one priority: counts its requests in flight, and rejects new ones beyond the limits.

    A request enters when it is accepted, and leaves when it has ended.
    """

    def __init__(self, limits: CapacityLimits) -> None:
        """Create the counts of an engine without requests."""
        self._limits = limits
        self._tickets: set[AdmissionTicket] = set()
        self._by_account: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()  # waiting requests by account
        self._waiting_tokens = 0
        self._seconds_per_end = 1.0  # average interval between two completions while requests wait
        self._num_ends = 0
        self._last_end = time.monotonic()

    @property
    def num_in_flight(self) -> int:
        """Requests that have entered and not left."""
        return len(self._tickets)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return self._waiting.total()

    def check(
        self,
        account: str,
        *,
        num_tokens: int = 0,
        reject_if_busy: bool = False,
        deadline_seconds: float | None = None,
        num_slots_taken: int = 0,
    ) -> None:
        """Check whether a request may enter now.

        Args:
            account: Account of the client.
            num_tokens: Length of the prompt in tokens; 0 if it is not known yet.
            reject_if_busy: Reject the request if it would have to wait.
            deadline_seconds: Time until the client's deadline; None: no deadline.
            num_slots_taken: Slots that are not available, because requests of the other priority hold them.

        Raises:
            CapacityExceeded: The request may not enter.
        """
        limits, waiting = self._limits, self.num_in_flight - max(0, self._limits.slots - num_slots_taken)
        if reject_if_busy and (waiting >= 0 or self._is_at_limit(account)):
            raise self._full("no slot is free and the request must not wait")
        # For an account without requests, the limit is twice as high, so that no single account can fill the queue.
        most = limits.waiting_seqs * (1 if self._by_account[account] else 2)
        if waiting >= most:
            raise self._full("the wait queue is full")
        # A prompt of any length may enter an empty queue.
        if self._waiting_tokens and self._waiting_tokens + num_tokens > limits.waiting_tokens:
            raise self._full("the wait queue cannot take this many prompt tokens")
        if deadline_seconds is not None and waiting >= 0 and self._num_ends >= _MIN_ENDS:
            expected = (self._num_ahead(account) + 1) * self._seconds_per_end
            if expected > deadline_seconds:
                raise self._full("its first token would come after its deadline", expected - deadline_seconds)

    def enter(self, account: str, num_tokens: int) -> AdmissionTicket:
        """Count a request that waits for a slot. Does not check the limits."""
        ticket = AdmissionTicket(self, account, num_tokens)
        self._tickets.add(ticket)
        self._by_account[account] += 1
        self._waiting[account] += 1
        self._waiting_tokens += num_tokens
        return ticket

    def admitted(self, ticket: AdmissionTicket) -> None:
        """Record that a request has a slot. A second call has no effect."""
        if ticket.is_waiting and ticket in self._tickets:
            ticket.is_waiting = False
            self._waiting_tokens -= ticket.num_tokens
            _decrease(self._waiting, ticket.account)

    def leave(self, ticket: AdmissionTicket) -> bool:
        """Record that a request has ended for any reason. Returns False if it had ended before."""
        if ticket not in self._tickets:
            return False
        now = time.monotonic()
        if self.num_in_flight > self._limits.slots:
            self._seconds_per_end += _WEIGHT * (now - self._last_end - self._seconds_per_end)
            self._num_ends += 1
        self._last_end = now
        self.admitted(ticket)
        self._tickets.discard(ticket)
        _decrease(self._by_account, ticket.account)
        return True

    def _is_at_limit(self, account: str) -> bool:
        most = self._limits.account_slots
        return most is not None and self._by_account[account] >= most

    def _num_ahead(self, account: str) -> int:
        """Return the number of requests that round-robin scheduling admits before the account's next request."""
        own = self._waiting[account]
        return own + sum(min(count, own + 1) for other, count in self._waiting.items() if other != account)

    def _full(self, sentence: str, seconds: float | None = None) -> CapacityExceeded:
        seconds = self._seconds_per_end if seconds is None else seconds
        return CapacityExceeded(sentence, retry_after_seconds=min(max(seconds, _MIN_RETRY), _MAX_RETRY))


def _decrease(counts: Counter[str], account: str) -> None:
    # Clients choose account names, so the counts of an account without requests must not stay in memory.
    counts[account] -= 1
    if not counts[account]:
        del counts[account]
