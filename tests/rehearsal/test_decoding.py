"""Steady decoding on a simulated GPU: what the host waits for, and the number of operators of a pass."""

import asyncio
import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from inference_server.model.runner import ModelRunner
from tests.support.engines import entry
from tests.support.models import tiny_models
from tests.support.rehearsal.engines import SAMPLINGS, prompt, replies, serving
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal

pytestmark = pytest.mark.rehearsal
LIMITS = {"precision": "float16", "context_length": 256, "sequence_length": 64}
OVERLAPPED = [sampling for sampling in SAMPLINGS.values() if "logprobs" not in sampling]


@pytest.mark.parametrize("architecture", ["llama-3", "gemma-2"])
async def test_the_host_waits_at_most_once_a_step_and_for_an_event(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    samplings = [*OVERLAPPED, {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5}]
    with rehearsal(SimulatedGpu()) as gpu:
        async with serving(entry(tiny_model(architecture), **LIMITS)) as model:
            gpu.log.clear()
            await asyncio.gather(*(replies(model, [prompt(20)], 50, **sampling) for sampling in samplings))
    steady = gpu.waits_between_replays()[15:-15]
    assert len(steady) >= 15
    assert all(waits in ([], ["event"]) for waits in steady), steady


@pytest.mark.parametrize("precision", ["float16", "bitsandbytes-int8"])
async def test_a_recorded_layer_has_nine_operators(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = []
    for num_layers in (1, 2):
        config = copy.deepcopy(tiny_models.ARCHITECTURES["llama-2"])
        config.num_hidden_layers = num_layers
        monkeypatch.setitem(tiny_models.ARCHITECTURES, f"{num_layers}", config)
        folder = tiny_models.write_model(tmp_path / str(num_layers), f"{num_layers}")
        with rehearsal(SimulatedGpu()) as gpu:
            async with serving(entry(folder, **{**LIMITS, "precision": precision})):
                kernels.append(gpu.graphs[0].kernels)
    layer = kernels[1] - kernels[0]
    rest = kernels[0] - layer
    print(f"{precision}: {layer.total()} operators a layer {dict(layer)}; {rest.total()} outside layers {dict(rest)}")
    assert layer.total() == 9
    assert rest.total() <= 20


async def test_sixteen_prompts_take_as_many_operators_as_one(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    operators: dict[int, Counter[str]] = {}
    prefill = ModelRunner.prefill
    with rehearsal(SimulatedGpu()) as gpu:

        def counted(runner, pieces):
            before = Counter(gpu.operators)
            logits = prefill(runner, pieces)
            operators[len(pieces)] = gpu.operators - before
            return logits

        monkeypatch.setattr(ModelRunner, "prefill", counted)
        sizes = {"max_running_seqs": 16, "prefill_chunk_tokens": 512, "prefill_idle_tokens": 512}
        async with serving(entry(tiny_model("llama-2"), **LIMITS), **sizes) as model:
            for count in (1, 16):
                await replies(model, [prompt(30, number) for number in range(count)], 1, temperature=0.0)
    attention = {count: counter["tailrace.paged_prefill_attention"] for count, counter in operators.items()}
    print({count: (counter.total(), attention[count]) for count, counter in operators.items()})
    assert attention[1] == attention[16] == 3  # one for each layer
    assert operators[1] == operators[16]
