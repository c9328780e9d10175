"""The engine on a simulated GPU under the conditions of traffic: shared prefixes, few blocks, mixed passes, two engines."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inference_server.engine.native import build as native
from inference_server.engine.native.engine import Engine
from inference_server.engine.spec import EngineSpec
from inference_server.model.runner import ModelRunner
from inference_server.weights.prepare import PreparedModel
from tests.support.engines import entry, until
from tests.support.rehearsal.engines import PROMPTS, Reply, prompt, replies, serving
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal
from tests.support.rehearsal.reference import Reference

pytestmark = pytest.mark.rehearsal
LIMITS = {"precision": "float16", "context_length": 256, "sequence_length": 64}


class _BuilderOfTwo:
    """Builds native engines as soon as the weights of two are loaded.

    Attributes:
        is_first_loaded: Set when the second model may be loaded. transformers changes torch's default dtype meanwhile, so
            no other thread may compute.
    """

    def __init__(self) -> None:
        self.load = native.load
        self.is_first_loaded = asyncio.Event()
        self._both = asyncio.Barrier(2)

    async def build(self, spec: EngineSpec[PreparedModel]) -> Engine:
        self.is_first_loaded.set()
        await self._both.wait()
        return await native.build(spec)


async def test_a_second_request_reads_the_first_ones_blocks_and_replies_equally(
    tiny_model: Callable[[str], Path],
) -> None:
    folder = tiny_model("llama-3")
    with rehearsal(SimulatedGpu()):
        async with serving(entry(folder, **LIMITS), prefix_cache="shared") as model:
            (first,) = await replies(model, [prompt(90)], temperature=0.0)
            before = model.engine.totals.hit_tokens
            (second,) = await replies(model, [prompt(90)], temperature=0.0)
            hits = model.engine.totals.hit_tokens - before
    assert second.token_ids == first.token_ids
    assert hits >= 64


async def test_preempted_requests_get_the_replies_of_transformers(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("llama-3")
    with rehearsal(SimulatedGpu()):
        async with serving(entry(folder, **LIMITS), kv_cache_tokens=352) as model:
            received = await replies(model, PROMPTS, 40, temperature=0.0)
            num_preemptions = model.engine.totals.preemptions
    assert num_preemptions > 0
    Reference(folder).assert_greedy(PROMPTS, received)


async def test_prompts_that_arrive_late_share_passes_with_decoded_tokens(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sizes = tiny_model("llama-3"), []
    mixed = ModelRunner.mixed

    def counted(runner, tokens, pieces, *rest):
        sizes.append((len(tokens), len(pieces)))
        return mixed(runner, tokens, pieces, *rest)

    monkeypatch.setattr(ModelRunner, "mixed", counted)
    with rehearsal(SimulatedGpu()):
        async with serving(entry(folder, **LIMITS)) as model:
            early = asyncio.create_task(replies(model, PROMPTS[:2], 40, temperature=0.0))
            await until(lambda: model.engine.num_running)
            late = await replies(model, PROMPTS[2:], 10, temperature=0.0)
            received = [*await early, *late]
    assert any(num_tokens and num_pieces for num_tokens, num_pieces in sizes)
    Reference(folder).assert_greedy(PROMPTS, received)


async def test_two_engines_record_at_once_on_one_gpu(tiny_model: Callable[[str], Path]) -> None:
    folders = [tiny_model("llama-2"), tiny_model("qwen-3")]
    builder = _BuilderOfTwo()

    async def answers(folder: Path) -> list[Reply]:
        if folder != folders[0]:
            await builder.is_first_loaded.wait()
        async with serving(entry(folder, **LIMITS), builder=builder) as model:
            return await replies(model, PROMPTS, temperature=0.0)

    with rehearsal(SimulatedGpu()) as gpu:

        def linger(_name: str) -> None:
            if gpu.capture is not None:
                time.sleep(0.0002)  # the other engine's thread runs

        gpu.before_operator = linger
        received = await asyncio.gather(*map(answers, folders))
    for folder, its_replies in zip(folders, received, strict=True):
        Reference(folder).assert_greedy(PROMPTS, its_replies)


async def test_an_engine_records_while_another_one_serves(tiny_model: Callable[[str], Path]) -> None:
    folders = [tiny_model("llama-2"), tiny_model("qwen-3")]
    with rehearsal(SimulatedGpu()) as gpu:
        async with serving(entry(folders[0], **LIMITS)) as first:
            traffic = asyncio.create_task(replies(first, PROMPTS, 60, temperature=0.0))
            await until(lambda: first.engine.num_running)
            num_graphs = len(gpu.graphs)
            async with serving(entry(folders[1], **LIMITS)) as second:
                assert len(gpu.graphs) > num_graphs
                assert not traffic.done()
                received = [await traffic, await replies(second, PROMPTS, temperature=0.0)]
    for folder, its_replies in zip(folders, received, strict=True):
        Reference(folder).assert_greedy(PROMPTS, its_replies)


@pytest.mark.parametrize("architecture", ["llama-3", "gemma-2"])
async def test_replies_are_right_when_others_end_are_cancelled_and_are_preempted(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model(architecture)
    prompts = [prompt(12 + 13 * number % 50, number % 4) for number in range(16)]
    with rehearsal(SimulatedGpu()):
        async with serving(entry(folder, **LIMITS), prefix_cache="shared", kv_cache_tokens=352) as model:

            async def later(number: int) -> Reply:
                await asyncio.sleep(0.02 * (number // 6))
                return (await replies(model, [prompts[number]], 30 + 7 * number % 30, temperature=0.0))[0]

            tasks = [asyncio.create_task(later(number)) for number in range(16)]
            await until(lambda: model.engine.totals.preemptions or tasks[-1].done(), seconds=30)
            for task in tasks[1::5]:
                task.cancel()
            received = await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: not model.engine.num_running)
            assert model.engine.totals.preemptions
    complete = [(ids, reply) for ids, reply in zip(prompts, received, strict=True) if isinstance(reply, Reply)]
    assert len(complete) >= 12
    Reference(folder).assert_greedy([ids for ids, _ in complete], [reply for _, reply in complete])
