"""The batch queue alone: turns, bounds, pauses after refusals, and what is kept."""

import asyncio
import logging

import pytest

from http_bridge.batches.batch import Request, Result
from http_bridge.batches.limits import Limits
from http_bridge.batches.queue import BatchQueue
from http_bridge.errors import ApiError

LIMITS = {
    "max_batches": 3,
    "max_requests": 10,
    "max_bytes": 1000,
    "keep_seconds": 60,
    "timeout_seconds": 60,
    "parallel": 2,
}
BUSY = ApiError(429, 3040, "Capacity temporarily exceeded, please try again.")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("http_bridge.batches.queue.FIRST_PAUSE", 0.01)


class FakeWork:
    """A request that waits for `gate`, if it has one, and raises its `errors` first."""

    def __init__(self, name="x", *, log=None, gate=None, errors=(), size=10):
        self.name, self.log, self.gate, self.errors, self.size = name, log, gate, list(errors), size

    async def run(self, request_id, timeout_seconds):
        if self.log is not None:
            self.log.append(self.name)
        if self.gate is not None:
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.sleep(0)
        return Result(b'{"response":"%s"}' % self.name.encode(), 5, 7)


@pytest.fixture
async def make_queue():
    queues = []

    def make(**changes):
        queues.append(BatchQueue(Limits(**{**LIMITS, **changes})))
        return queues[-1]

    yield make
    for queue in queues:
        await queue.close()


def submit(queue, *works, account="acc"):
    return queue.submit([Request(b"null", work) for work in works], account=account, model="m")


async def finished(batch):
    async with asyncio.timeout(5):
        while batch.status != "finished":
            await asyncio.sleep(0.002)
    return [request.outcome for request in batch.requests]


async def test_a_batch_is_queued_then_running_then_finished(make_queue):
    gate = asyncio.Event()
    queue = make_queue(parallel=1)
    first, second = submit(queue, FakeWork(gate=gate)), submit(queue, FakeWork())
    assert (first.status, second.status) == ("running", "queued")
    assert (queue.count("queued"), queue.count_requests("waiting"), queue.count_requests("running")) == (1, 1, 1)
    gate.set()
    assert [outcome.body for outcome in await finished(second)] == [b'{"response":"x"}']
    assert first.status == "finished"


async def test_batches_take_turns(make_queue):
    log: list[str] = []
    queue = make_queue(parallel=1)
    large = submit(queue, *(FakeWork(f"a{index}", log=log) for index in range(4)))
    small = submit(queue, FakeWork("b0", log=log))
    await finished(large)
    await finished(small)
    assert log.index("b0") <= 2


async def test_no_more_requests_run_than_allowed(make_queue):
    gate = asyncio.Event()
    queue = make_queue(parallel=2)
    batch = submit(queue, *(FakeWork(gate=gate) for _ in range(5)))
    await asyncio.sleep(0.01)
    assert queue.count_requests("running") == 2
    gate.set()
    assert len(await finished(batch)) == 5


@pytest.mark.parametrize("refusal", [BUSY, ApiError(503, 7009, "Upstream service unavailable")])
async def test_a_refused_request_is_repeated(make_queue, refusal):
    batch = submit(make_queue(), FakeWork(errors=[refusal, refusal]))
    assert isinstance((await finished(batch))[0], Result)


async def test_a_refused_batch_does_not_hold_up_another_one(make_queue):
    queue = make_queue(parallel=1)
    refused = submit(
        queue, FakeWork(errors=[ApiError(429, 3021, "rate limiting", retry_after_seconds=10)]), account="a"
    )
    assert isinstance((await finished(submit(queue, FakeWork(), account="b")))[0], Result)
    assert refused.status == "running"


async def test_other_errors_end_their_request_alone(make_queue):
    wrong = ApiError(400, 5006, "Bad input")
    batch = submit(make_queue(), FakeWork(errors=[wrong]), FakeWork(), FakeWork(errors=[ValueError("secret")]))
    first, second, third = await finished(batch)
    assert first is wrong and isinstance(second, Result) and third.status == 500
    assert batch.num_failed == 2


async def test_a_batch_without_valid_requests_is_finished_at_once(make_queue):
    batch = make_queue().submit([Request(b'"x"', None, ApiError(400, 5006, "Bad input"))], account="", model="m")
    assert batch.status == "finished" and batch.num_failed == 1


async def test_requests_that_did_not_end_in_time_fail(make_queue):
    batch = submit(make_queue(timeout_seconds=0.03), FakeWork(errors=[BUSY] * 100))
    (outcome,) = await finished(batch)
    assert (outcome.status, outcome.code) == (408, 3007)


async def test_a_batch_belongs_to_its_account_and_model(make_queue):
    queue = make_queue()
    batch = submit(queue, FakeWork(), account="a")
    assert queue.find(batch.id, account="a", model="m") is batch
    assert queue.find(batch.id, account="b", model="m") is None
    assert queue.find(batch.id, account="a", model="other") is None
    assert queue.find("unknown", account="a", model="m") is None


async def test_results_are_dropped_after_their_time(make_queue):
    queue = make_queue(keep_seconds=0.02)
    batch = submit(queue, FakeWork())
    await finished(batch)
    await asyncio.sleep(0.05)
    assert queue.find(batch.id, account="acc", model="m") is None


async def test_a_full_queue_refuses_until_a_batch_was_read(make_queue):
    queue = make_queue(max_batches=1)
    batch = submit(queue, FakeWork())
    await finished(batch)
    with pytest.raises(ApiError) as refusal:
        submit(queue, FakeWork())
    assert (refusal.value.status, refusal.value.code, refusal.value.retry_after_seconds) == (429, 3040, 30)
    batch.was_read = True
    await finished(submit(queue, FakeWork()))
    assert queue.find(batch.id, account="acc", model="m") is None


async def test_waiting_requests_have_a_bound_in_bytes(make_queue):
    gate = asyncio.Event()
    queue = make_queue(max_bytes=100)
    submit(queue, FakeWork(gate=gate, size=90))
    with pytest.raises(ApiError) as refusal:
        submit(queue, FakeWork(size=20))
    assert refusal.value.code == 3040


@pytest.mark.parametrize(
    "request_", [Request(b"x" * 90, None, ApiError(400, 5006, "")), Request(b"", None, ApiError(400, 5006, "x" * 90))]
)
async def test_references_and_errors_count_too(make_queue, request_):
    queue = make_queue(max_bytes=100)
    queue.submit([request_], account="", model="m")
    with pytest.raises(ApiError) as refusal:
        submit(queue, FakeWork(size=20))
    assert refusal.value.code == 3040


async def test_a_result_without_room_fails_alone(make_queue):
    batch = submit(make_queue(max_bytes=30), FakeWork("y" * 50, size=10), FakeWork("z", size=10))
    first, second = await finished(batch)
    assert first.code == 3006 and isinstance(second, Result)


async def test_too_many_requests_are_refused(make_queue):
    with pytest.raises(ApiError) as refusal:
        submit(make_queue(max_requests=2), *(FakeWork() for _ in range(3)))
    assert (refusal.value.status, refusal.value.code) == (413, 3006)


async def test_a_batch_that_would_never_fit_is_refused(make_queue):
    queue = make_queue(max_bytes=100)
    queue.check_size(1, 100)
    with pytest.raises(ApiError) as refusal:
        queue.check_size(1, 101)
    assert (refusal.value.status, refusal.value.code) == (413, 3006)


async def test_batches_can_be_switched_off(make_queue):
    with pytest.raises(ApiError) as refusal:
        submit(make_queue(max_batches=0), FakeWork())
    assert (refusal.value.status, refusal.value.code) == (400, 5006)


async def test_a_stop_cancels_requests_and_logs_what_is_lost(caplog):
    caplog.set_level(logging.WARNING)
    queue = BatchQueue(Limits(**LIMITS))
    cancelled = asyncio.Event()

    class Endless(FakeWork):
        async def run(self, request_id, timeout_seconds):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

    await finished(submit(queue, FakeWork()))
    submit(queue, Endless(), Endless(), Endless())
    await asyncio.sleep(0.01)
    await queue.close()
    assert cancelled.is_set()
    assert "3 unfinished requests of batches and the unread results of 1 finished batches are lost" in caplog.text
