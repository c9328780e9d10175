"""Memory that runs out and captures that fail: requests complete or fail with a clear error, and the engine continues."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference_server.errors import GenerationFailed
from inference_server.precision import Precision
from inference_server.serving.hosted_model import HostedModel
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import entry, until
from tests.support.rehearsal.engines import PROMPTS, Reply, prompt, replies, serving
from tests.support.rehearsal.faults import PHASES, Fault
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal
from tests.support.rehearsal.reference import Reference

pytestmark = pytest.mark.rehearsal
LIMITS = {"context_length": 256, "sequence_length": 64}
INT8: Precision = "bitsandbytes-int8"


async def traffic(model: HostedModel, **sampling: object) -> list[Reply]:
    """Send prompts, of which the last arrive while the first are decoded."""
    early = asyncio.create_task(replies(model, PROMPTS[:3], 16, **sampling))
    await until(lambda: model.engine.num_running)
    await asyncio.sleep(0.02)
    late = await replies(model, PROMPTS[3:], 8, **sampling)
    return [*await early, *late]


# The modules of Gemma 2 run one by one, and have no mixed passes.
MODELS: dict[str, tuple[str, Precision, list[str]]] = {
    "16-bit": ("llama-3", "float16", [*PHASES]),
    "int8": ("llama-3", INT8, ["mixed", "decode"]),
    "modules": ("gemma-2", "float16", ["prefill", "decode"]),
}


@pytest.mark.parametrize(("kind", "phase"), [(kind, phase) for kind in MODELS for phase in MODELS[kind][2]])
async def test_requests_complete_or_fail_clearly_when_memory_runs_out(
    kind: str, phase: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, precision, _ = MODELS[kind]
    folder = tiny_model(architecture)
    reference = Reference(folder, is_int8=precision == INT8)
    num_faults = 0
    with rehearsal(SimulatedGpu()) as gpu:
        fault = Fault(gpu, monkeypatch)
        async with serving(entry(folder, precision=precision, **LIMITS)) as model:
            for countdown in (0, 4, 25):
                fault.arm(phase, countdown)
                received = await traffic(model, temperature=0.0)
                fault.disarm()
                num_faults += fault.has_happened
                assert all(isinstance(reply.error, GenerationFailed | None) for reply in received)
                complete = [index for index, reply in enumerate(received) if reply.error is None]
                reference.assert_greedy([PROMPTS[i] for i in complete], [received[i] for i in complete])
                (after,) = await replies(model, [prompt(40)], temperature=0.0)
                reference.assert_greedy([prompt(40)], [after])
            await until(lambda: not model.engine.num_blocks_in_use)
    assert num_faults >= 2


@pytest.mark.parametrize("phase", PHASES)
async def test_random_replies_complete_or_fail_clearly_when_memory_runs_out(
    phase: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}
    with rehearsal(SimulatedGpu()) as gpu:
        fault = Fault(gpu, monkeypatch)
        async with serving(entry(tiny_model("llama-3"), precision="float16", **LIMITS)) as model:
            undisturbed = await traffic(model, **sampling)
            for countdown in (0, 7, 40):
                fault.arm(phase, countdown)
                received = await traffic(model, **sampling)
                fault.disarm()
                for reply, wanted in zip(received, undisturbed, strict=True):
                    assert isinstance(reply.error, GenerationFailed | None)
                    assert reply.error or reply.token_ids == wanted.token_ids
            await until(lambda: not model.engine.num_blocks_in_use)


@pytest.mark.parametrize("countdown", [0, 20, 400])
async def test_too_little_memory_for_the_recording_is_a_clear_error_or_harmless(
    countdown: int, tiny_model: Callable[[str], Path]
) -> None:
    folder, remaining, received = tiny_model("llama-3"), [countdown], None
    with rehearsal(SimulatedGpu()) as gpu:

        def fail(_name: str) -> None:
            if gpu.capture is not None:
                remaining[0] -= 1
                if remaining[0] == -1:
                    raise torch.OutOfMemoryError("CUDA out of memory. (rehearsed)")

        gpu.before_operator = fail
        try:
            async with serving(entry(folder, precision="float16", **LIMITS)) as model:
                received = await replies(model, PROMPTS, temperature=0.0)
        except ConfigurationError as error:
            assert "memory" in str(error)
    if received is not None:
        Reference(folder).assert_greedy(PROMPTS, received)


@pytest.mark.parametrize("architecture", ["llama-3", "gemma-2"])
async def test_a_model_whose_recording_fails_answers_without_graphs(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model(architecture)
    with rehearsal(SimulatedGpu()) as gpu:

        def fail(name: str) -> None:
            if gpu.capture is not None and "attention" in name:
                gpu.capture.is_broken = True
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

        gpu.before_operator = fail
        async with serving(entry(folder, precision="float16", **LIMITS)) as model:
            received = await replies(model, PROMPTS, temperature=0.0)
        assert not any(graph.num_replays for graph in gpu.graphs)
    Reference(folder).assert_greedy(PROMPTS, received)
