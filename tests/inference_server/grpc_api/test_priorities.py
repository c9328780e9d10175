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


async def until_measured(running, expected):
    """Wait until the model's metrics have the expected values, by name. Raises AssertionError after 20 s."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        text = await asyncio.to_thread(read_metrics, running.server._settings.metrics_address)
        found = {name.removesuffix(f'{{model="{MODEL}"}}'): value for name, value in samples(text).items()}
        if expected.items() <= found.items():
            return
        assert asyncio.get_running_loop().time() < deadline, {name: found.get(name) for name in expected}
        await asyncio.sleep(0.01)


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
        await asyncio.gather(*(reply(running, request(f"name {number} {n}", max_tokens=20)) for n in range(8)))
    assert not any(task.done() for task in tasks[4:])
    assert running.engine.totals.preemptions > 0
    found = await asyncio.gather(*tasks)
    assert [each[0] for each in found[:3]] == [each[0] for each in alone]


async def test_waiting_batch_requests_are_counted_and_leave_the_latencies_alone(running):
    batch = [request(f"town {n}", is_batch=True, max_tokens=400) for n in range(7)]
    tasks = [asyncio.create_task(reply(running, each)) for each in batch]
    await until_measured(running, {"tailrace_batch_requests_waiting": 3, "tailrace_requests_waiting": 3})
    await asyncio.gather(*tasks)
    await reply(running, request("name"))
    # The end of a request is counted after its last event was sent.
    ended = {"tailrace_time_to_first_token_seconds_count": 1, "tailrace_request_queue_time_seconds_count": 1}
    await until_measured(running, ended)
