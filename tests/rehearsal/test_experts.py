"""Models with experts, and with attention sinks, on the simulated GPU.

In bfloat16, transformers' own grouped product computes the experts. The simulated GPU does not run it.
"""

from pathlib import Path

import pytest

from inference_server.linears.experts import is_stack
from inference_server.precision import Precision
from tests.support.engines import entry
from tests.support.models.expert_models import write_expert_model
from tests.support.rehearsal.engines import PROMPTS, replies, serving
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal
from tests.support.rehearsal.reference import Reference

CASES: list[tuple[str, Precision]] = [
    ("mixtral", "float16"),
    ("mixtral", "bitsandbytes-int8"),
    ("gpt-oss", "float16"),
    ("gpt-oss", "bitsandbytes-int8"),
    ("qwen-3", "bitsandbytes-int8"),
]


@pytest.mark.rehearsal
@pytest.mark.parametrize(("name", "precision"), CASES)
async def test_experts_on_a_gpu_are_recorded_and_answer_as_transformers(
    name: str, precision: Precision, tmp_path: Path
) -> None:
    write_expert_model(tmp_path, name)
    with rehearsal(SimulatedGpu()) as gpu:
        hosted = entry(tmp_path, precision=precision, context_length=256, sequence_length=64)
        async with serving(hosted, max_running_seqs=4) as model:
            received = await replies(model, PROMPTS[:4], temperature=0.0)
            modules = list(model.engine.runner.model.modules())  # type: ignore[attr-defined]
    assert any(graph.num_replays for graph in gpu.graphs)
    assert not any(is_stack(module) for module in modules)
    reference = Reference(tmp_path, is_int8=precision == "bitsandbytes-int8")
    reference.assert_greedy(PROMPTS[:4], received, tolerance=0.1 if precision == "float16" else 0.6)
