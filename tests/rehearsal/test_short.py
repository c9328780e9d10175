"""A short rehearsal for every run of the tests. `make test-rehearsal` runs the long one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from inference_server.gpu.paths import choose_path, has_fused_layers
from inference_server.precision import Precision
from tests.support.engines import entry
from tests.support.rehearsal.engines import PROMPTS, replies, serving
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal
from tests.support.rehearsal.reference import Reference


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("llama-3", "float16"), ("llama-3", "bitsandbytes-int8"), ("gemma-2", "float16")],
    ids=["16-bit", "int8", "modules"],
)
async def test_a_gpu_replays_graphs_and_its_replies_are_those_of_transformers(
    architecture: str, precision: Precision, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model(architecture)
    with rehearsal(SimulatedGpu()) as gpu:
        async with serving(
            entry(folder, precision=precision, context_length=256, sequence_length=64), max_running_seqs=4
        ) as model:
            received = await replies(model, PROMPTS[:4], temperature=0.0)
            taken = model.engine.runner.path  # type: ignore[attr-defined]
    assert taken == predicted_path(folder, precision)
    assert any(graph.num_replays for graph in gpu.graphs)
    Reference(folder, is_int8=precision == "bitsandbytes-int8").assert_greedy(PROMPTS[:4], received)


def predicted_path(folder: Path, precision: Precision) -> str:
    """Return the path that `tailrace doctor` reports for a model."""
    can_fuse = has_fused_layers(AutoConfig.from_pretrained(folder))
    return str(choose_path(can_fuse, precision, int8_threshold=0.0, has_triton=True))
