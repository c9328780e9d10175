"""Admission control: limits, deadlines and retry delays."""

import time

import pytest

from inference_server.engine.admission import Admission, CapacityLimits
from inference_server.engine.rate_limit import RateLimit
from inference_server.errors import CapacityExceeded, RateLimited


def admission(**room: int | None) -> Admission:
    return Admission(CapacityLimits(**{"slots": 2, "waiting_seqs": 100, "waiting_tokens": 1000, **room}))


def busy(admission: Admission, seconds_per_end: float, *, num_ends: int = 20):
    """Full slots and one that waits, and so much time between the ends seen before."""
    tickets = [admission.enter("a", 1) for _ in range(3)]
    for _ in range(num_ends):
        admission._last_end = time.monotonic() - seconds_per_end
        admission.leave(tickets.pop(0))
        tickets.append(admission.enter("a", 1))
    for ticket in tickets[:2]:
        admission.admitted(ticket)


def test_what_would_come_after_its_deadline_is_refused_at_once():
    room = admission()
    busy(room, seconds_per_end=2.0)
    room.check("b", deadline_seconds=10.0)
    with pytest.raises(CapacityExceeded, match="deadline") as refused:
        room.check("b", deadline_seconds=3.0)
    assert 1.0 <= refused.value.retry_after_seconds <= 2.0


def test_an_account_waits_for_its_own_and_for_one_turn_of_the_others():
    room = admission()
    busy(room, seconds_per_end=1.0)
    for _ in range(20):
        room.enter("a", 1)
    room.check("b", deadline_seconds=4.0)
    with pytest.raises(CapacityExceeded, match="deadline"):
        room.check("a", deadline_seconds=4.0)


def test_no_deadline_rejection_before_enough_ends():
    room = admission()
    busy(room, seconds_per_end=100.0, num_ends=2)
    room.check("b", deadline_seconds=0.1)


def test_the_time_to_come_back_follows_the_ends_that_were_seen():
    room = admission(waiting_seqs=1)
    busy(room, seconds_per_end=20.0)
    with pytest.raises(CapacityExceeded, match="full") as refused:
        room.check("a")
    assert 15.0 <= refused.value.retry_after_seconds <= 20.5


def test_an_account_that_fills_the_room_does_not_keep_others_out():
    room = admission(slots=1, waiting_seqs=2)
    for account in "aaa":
        room.enter(account, 1)
    with pytest.raises(CapacityExceeded, match="full"):
        room.check("a")
    for account in "bc":
        room.check(account)
        room.enter(account, 1)
    for account in "bd":
        with pytest.raises(CapacityExceeded, match="full"):
            room.check(account)


def test_an_account_at_its_cap_counts_as_busy():
    room = admission(slots=8, account_slots=1)
    room.enter("a", 1)
    room.check("b", reject_if_busy=True)
    with pytest.raises(CapacityExceeded):
        room.check("a", reject_if_busy=True)


def test_a_ticket_is_counted_until_it_leaves_and_once():
    room = admission()
    ticket = room.enter("a", 5)
    room.admitted(ticket)
    room.admitted(ticket)
    assert (room.num_in_flight, room.num_waiting) == (1, 0)
    assert room.leave(ticket) and not room.leave(ticket)
    assert (room.num_in_flight, room._by_account, room._waiting, room._waiting_tokens) == (0, {}, {}, 0)


def test_an_account_may_send_a_minutes_requests_at_once_and_then_waits():
    limit = RateLimit(requests_per_minute=3)
    for _ in range(3):
        limit.take("a")
    with pytest.raises(RateLimited) as refused:
        limit.take("a")
    assert 1 <= refused.value.retry_after_seconds <= 60
    limit.take("b")
    limit.take("")
