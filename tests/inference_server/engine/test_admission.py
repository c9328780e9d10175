"""Admission of requests: capacity, deadlines, and the time to retry."""

import time

import pytest

from inference_server.engine.admission import Admission, CapacityLimits
from inference_server.engine.base import BaseEngine
from inference_server.engine.rate_limit import RateLimit
from inference_server.errors import CapacityExceeded, RateLimited
from inference_server.generation import GenerationRequest, SamplingParams, Started


def admission(**room: int | None) -> Admission:
    return Admission(CapacityLimits(**{"slots": 2, "waiting_seqs": 100, "waiting_tokens": 1000, **room}))


def busy(admission: Admission, seconds_per_end: float, *, num_ends: int = 20):
    """Fill the slots and the queue with one request, after `num_ends` ends in intervals of `seconds_per_end`."""
    tickets = [admission.enter("a", 1) for _ in range(3)]
    for _ in range(num_ends):
        admission._last_end = time.monotonic() - seconds_per_end
        admission.leave(tickets.pop(0))
        tickets.append(admission.enter("a", 1))
    for ticket in tickets[:2]:
        admission.admitted(ticket)


def test_a_deadline_that_cannot_be_met_is_refused_immediately():
    room = admission()
    busy(room, seconds_per_end=2.0)
    room.check("b", deadline_seconds=10.0)
    with pytest.raises(CapacityExceeded, match="deadline") as refused:
        room.check("b", deadline_seconds=3.0)
    assert 1.0 <= refused.value.retry_after_seconds <= 2.0


def test_an_accounts_wait_includes_one_turn_of_the_others():
    room = admission()
    busy(room, seconds_per_end=1.0)
    for _ in range(20):
        room.enter("a", 1)
    room.check("b", deadline_seconds=4.0)
    with pytest.raises(CapacityExceeded, match="deadline"):
        room.check("a", deadline_seconds=4.0)


def test_without_measurements_no_deadline_is_refused():
    room = admission()
    busy(room, seconds_per_end=100.0, num_ends=2)
    room.check("b", deadline_seconds=0.1)


def test_the_retry_time_follows_the_measured_ends():
    room = admission(waiting_seqs=1)
    busy(room, seconds_per_end=20.0)
    with pytest.raises(CapacityExceeded, match="full") as refused:
        room.check("a")
    assert 15.0 <= refused.value.retry_after_seconds <= 20.5


def test_an_account_that_fills_the_queue_does_not_block_others():
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


def test_an_account_may_send_a_minutes_requests_in_a_burst():
    limit = RateLimit(requests_per_minute=3)
    for _ in range(3):
        limit.take("a")
    with pytest.raises(RateLimited) as refused:
        limit.take("a")
    assert 1 <= refused.value.retry_after_seconds <= 60
    limit.take("b")
    limit.take("")


# Priorities.


class IdleEngine(BaseEngine):
    """An engine whose requests never get a slot unless a test says so."""

    path, preempts_batch, vocab_size, num_slots = "", True, 9, 4
    num_running, num_blocks_in_use, num_blocks, totals, step_tokens = 0, 0, 1, None, None

    def _add(self, seq) -> None: ...

    def _cancel(self, reply) -> None:
        self._forget(reply)

    async def stop(self) -> None: ...


def idle_engine(**room):
    limits = {"slots": 4, "waiting_seqs": 3, "waiting_tokens": 40, "batch_slots": 1, **room}
    return IdleEngine(CapacityLimits(**limits), lambda: None)


def submit(engine, count=1, **options):
    options = {"request_id": "r", "prompt_ids": [1] * 5, "sampling": SamplingParams(seed=1), "max_tokens": 3, **options}
    return [engine.submit(GenerationRequest(**options), None) for _ in range(count)]


async def test_batch_requests_do_not_fill_the_wait_queue_of_interactive_ones():
    engine = idle_engine()
    submit(engine, 4, is_batch=True)
    with pytest.raises(CapacityExceeded, match="full"):
        submit(engine, is_batch=True)
    assert (engine.num_waiting, engine.num_waiting_batch) == (4, 4)
    submit(engine, 7)
    with pytest.raises(CapacityExceeded, match="full"):
        submit(engine)
    assert (engine.num_waiting, engine.num_waiting_batch, engine.num_in_flight) == (11, 4, 11)


async def test_an_interactive_request_that_must_not_wait_counts_interactive_requests_only():
    engine = idle_engine()
    submit(engine, 3, is_batch=True)
    submit(engine, 4, reject_if_busy=True)
    with pytest.raises(CapacityExceeded, match="no slot is free"):
        submit(engine, reject_if_busy=True)


async def test_batch_requests_that_keep_their_slots_count_for_interactive_requests_that_must_not_wait(monkeypatch):
    monkeypatch.setattr(IdleEngine, "preempts_batch", False)
    engine = idle_engine()
    (reply,) = submit(engine, is_batch=True)
    engine._deliver([(reply, Started(5, 1))])
    submit(engine, 3, reject_if_busy=True)
    with pytest.raises(CapacityExceeded, match="no slot is free"):
        submit(engine, reject_if_busy=True)


@pytest.mark.parametrize(("num_interactive", "num_batch"), [(4, 0), (0, 1)])
async def test_a_batch_request_that_must_not_wait_needs_a_slot_of_the_batch_that_is_free(num_interactive, num_batch):
    engine = idle_engine()
    engine.check_capacity("a", reject_if_busy=True, is_batch=True)
    submit(engine, num_interactive)
    submit(engine, num_batch, is_batch=True)
    with pytest.raises(CapacityExceeded, match="no slot is free"):
        submit(engine, is_batch=True, reject_if_busy=True)


async def test_batch_requests_that_wait_do_not_count_as_load():
    engine = idle_engine()
    submit(engine, 4, is_batch=True)
    assert engine.utilization == 0.0
    reply, *_ = submit(engine, 2)
    assert engine.utilization == 0.5
    engine._deliver([(reply, Started(5, 1))])
    assert (engine.utilization, engine.num_waiting) == (0.5, 5)


async def test_a_batch_request_leaves_its_own_count():
    engine = idle_engine()
    (reply,) = submit(engine, is_batch=True)
    engine._cancel(reply)
    assert (engine.num_in_flight, engine.num_waiting, engine.batch_admission.num_in_flight) == (0, 0, 0)
