"""Through the gRPC server: batch requests beside interactive ones, and several replies to one prompt."""

import asyncio

import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.support.engines import until
from tests.support.observability.metrics import read_metrics, samples
from tests.support.processes import free_address
from tests.support.servers import MODEL, running_server, write_catalog

BLOCK = 32


@pytest.fixture
async def running(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    async with running_server(catalog, max_running_seqs=8, max_batch_seqs=4, metrics_address=free_address()) as server:
        yield server


def request(text, *, is_batch=False, **sampling):
    priority = pb.PRIORITY_BATCH if is_batch else pb.PRIORITY_UNSPECIFIED
    sampling = pb.Sampling(**{"max_tokens": 40, "temperature": 1.5, "min_p": 0.01, **sampling})
    return pb.RunRequest(model=MODEL, text=text, sampling=sampling, priority=priority)


async def reply(running, request):
    """Return text, prompt tokens and cached tokens."""
    text = ""
    async for event in running.stub.Run(request):
        text += event.delta.text
    usage = event.completed.usage
    return text, usage.prompt_tokens, usage.cached_tokens


async def measured(running):
    """Return the metrics of the model by name."""
    text = await asyncio.to_thread(read_metrics, running.server._settings.metrics_address)
    return {name.removesuffix(f'{{model="{MODEL}"}}'): value for name, value in samples(text).items()}


async def test_replies_to_one_prompt_that_arrive_together_share_its_computation(running):
    prompt = "the program prints the name of the town " * 20
    found = await asyncio.gather(*(reply(running, request(prompt, seed=seed)) for seed in range(8)))
    (num_tokens,) = {each[1] for each in found}
    shared = (num_tokens - 1) // BLOCK * BLOCK
    assert sorted(each[2] for each in found) == [0] + [shared] * 7 and shared > BLOCK
    assert len({each[0] for each in found}) == 8


async def test_interactive_requests_overtake_a_batch_whose_replies_stay_the_same(running):
    batch = [request(f"town {n}", is_batch=True, seed=n, max_tokens=200) for n in range(12)]
    alone = [await reply(running, each) for each in batch[:3]]
    tasks = [asyncio.create_task(reply(running, each)) for each in batch]
    await until(lambda: running.engine.num_running == 4)
    for number in range(3):
        await asyncio.gather(*(reply(running, request(f"name {number} {n}", max_tokens=3)) for n in range(8)))
    assert not any(task.done() for task in tasks[4:])
    assert running.engine.totals.preemptions > 0
    found = await asyncio.gather(*tasks)
    assert [each[0] for each in found[:3]] == [each[0] for each in alone]


async def test_waiting_batch_requests_are_counted_and_leave_the_latencies_alone(running):
    tasks = [asyncio.create_task(reply(running, request(f"town {n}", is_batch=True))) for n in range(7)]
    await until(lambda: running.engine.num_running == 4)
    found = await measured(running)
    assert found["tailrace_batch_requests_waiting"] == found["tailrace_requests_waiting"] == 3
    await asyncio.gather(*tasks)
    await reply(running, request("name"))
    found = await measured(running)
    assert found["tailrace_time_to_first_token_seconds_count"] == 1
    assert found["tailrace_request_queue_time_seconds_count"] == 1
