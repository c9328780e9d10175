"""The embedding engine with a scripted encoder: batches, cancelling, failures, limits, draining."""

import asyncio
import threading

import numpy as np
import pytest

from inference_server.embedding.encoder import PackedText
from inference_server.embedding.engine import EmbeddingEngine
from inference_server.embedding.job import EmbeddingRequest
from inference_server.engine.admission import CapacityLimits
from inference_server.errors import CapacityExceeded, GenerationFailed, ServerStopping
from tests.support.engines import until

NAN = float("nan")


class ScriptedEncoder:
    """An encoder whose vector of a text is its first token. Batches wait while `gate` is closed."""

    dimensions, vocab_size = 1, 1000

    def __init__(self):
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False  # batches of several texts fail
        self.is_broken = False  # every batch fails

    def vectors(self, texts, on_layer=None):
        self.on_layer = on_layer
        self.batches.append([text.token_ids[0] for text in texts])
        assert self.gate.wait(10)
        if self.is_broken or (self.fails and len(texts) > 1):
            raise RuntimeError("no memory")
        return [np.array([NAN if text.token_ids[0] == 99 else text.token_ids[0]], np.float32) for text in texts]


@pytest.fixture
async def engine():
    limits = CapacityLimits(slots=2, waiting_seqs=2, waiting_tokens=1000)
    engine = EmbeddingEngine(ScriptedEncoder(), limits=limits, batch_tokens=4)
    yield engine
    engine.encoder.gate.set()
    await engine.stop()


def request(*numbers, account="", length=1):
    return EmbeddingRequest(texts=[PackedText([number] * length, "cls", False) for number in numbers], account=account)


async def vectors(engine, submitted):
    async with engine.submit(submitted) as job:
        return [int(vector[0]) for vector in await job.vectors()]


async def begun(engine, submitted):
    """Submit a request whose first batch does not end before the gate is opened."""
    engine.encoder.gate.clear()
    task = asyncio.create_task(vectors(engine, submitted))
    await until(lambda: engine.encoder.batches)
    return task


async def test_vectors_have_the_order_of_the_texts(engine):
    assert await vectors(engine, request(3, 1, 2, 9, 8, 7, 6)) == [3, 1, 2, 9, 8, 7, 6]
    assert [len(batch) for batch in engine.encoder.batches] == [4, 3]
    assert (engine.num_in_flight, engine.step_tokens.total) == (0, 7)


async def test_requests_of_several_clients_share_batches(engine):
    first = await begun(engine, request(1))
    others = [asyncio.create_task(vectors(engine, request(number, account=str(number)))) for number in (2, 3)]
    await until(lambda: engine.num_in_flight == 3)
    engine.encoder.gate.set()
    assert [await first, *[await other for other in others]] == [[1], [2], [3]]
    assert engine.encoder.batches == [[1], [2, 3]]


async def test_a_cancelled_request_leaves_the_queue(engine):
    first = await begun(engine, request(1, 1, 1, 1))
    second = asyncio.create_task(vectors(engine, request(2, 2)))
    await until(lambda: engine.num_in_flight == 2)
    second.cancel()
    await asyncio.wait([second])
    assert engine.num_in_flight == 1
    engine.encoder.gate.set()
    await first
    assert [2, 2] not in engine.encoder.batches and engine.num_in_flight == 0


async def test_a_failed_batch_fails_its_requests_alone(engine):
    engine.encoder.fails = True
    with pytest.raises(GenerationFailed):
        await vectors(engine, request(1, 2, 3, 4, 5, 6))
    engine.encoder.fails = False
    assert await vectors(engine, request(7)) == [7]
    assert engine.num_in_flight == 0


async def test_a_model_that_cannot_embed_a_token_any_more_is_reported():
    broken = asyncio.Event()
    limits = CapacityLimits(slots=2, waiting_seqs=2, waiting_tokens=1000)
    engine = EmbeddingEngine(ScriptedEncoder(), limits=limits, batch_tokens=4, on_broken=broken.set)
    engine.encoder.is_broken = True
    with pytest.raises(GenerationFailed):
        await vectors(engine, request(1))
    await asyncio.wait_for(broken.wait(), 5)
    with pytest.raises(ServerStopping):
        engine.submit(request(2))
    await engine.stop()


async def test_a_vector_that_is_not_finite_fails_its_request_alone(engine):
    blocked = await begun(engine, request(1))
    bad, good = (asyncio.create_task(vectors(engine, request(number))) for number in (99, 2))
    await until(lambda: engine.num_in_flight == 3)
    engine.encoder.gate.set()
    assert (await blocked, await good) == ([1], [2])
    with pytest.raises(GenerationFailed):
        await bad
    assert engine.num_in_flight == 0


async def test_each_layer_of_a_long_batch_is_progress_for_the_watchdog(engine):
    first = await begun(engine, request(1))
    engine._last_progress -= 100
    assert engine.seconds_without_progress > 99
    engine.encoder.on_layer()
    assert engine.seconds_without_progress < 50
    engine.encoder.gate.set()
    assert await first == [1]


async def test_a_full_queue_refuses_requests(engine):
    tasks = [await begun(engine, request(1))]
    tasks += [asyncio.create_task(vectors(engine, request(1))) for _ in range(3)]
    await until(lambda: engine.num_in_flight == 4)
    with pytest.raises(CapacityExceeded) as refused:
        engine.submit(request(2))
    assert refused.value.retry_after_seconds >= 1
    engine.encoder.gate.set()
    await asyncio.gather(*tasks)


async def test_draining_finishes_accepted_requests_and_refuses_others(engine):
    first = await begun(engine, request(1))
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(ServerStopping):
        engine.submit(request(2))
    engine.encoder.gate.set()
    assert await first == [1]
    await asyncio.wait_for(draining, 5)


async def test_stopping_fails_waiting_requests(engine):
    first = await begun(engine, request(*range(8)))
    engine.is_stalled = True  # `stop` then does not wait for the batch
    await engine.stop()
    with pytest.raises(ServerStopping):
        await first
