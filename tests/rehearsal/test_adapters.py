"""LoRA adapters on a simulated GPU: a batch with several adapters has the replies of models with merged weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from inference_server.precision import Precision
from tests.support.engines import entry
from tests.support.models.adapters import linear_shapes, write_adapter
from tests.support.rehearsal.engines import PROMPTS, replies, serving
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal
from tests.support.rehearsal.reference import Reference

ROWS = [0, 1, 2, 1]  # the adapter of each prompt


@pytest.mark.parametrize(
    ("architecture", "precision", "settings"),
    [
        ("llama-3", "float16", {}),
        pytest.param("llama-3", "bitsandbytes-int8", {}, marks=pytest.mark.rehearsal),
        pytest.param("gemma-2", "float16", {}, marks=pytest.mark.rehearsal),
        pytest.param("llama-3", "float16", {"batch_invariant": True}, marks=pytest.mark.rehearsal),
    ],
    ids=["16-bit", "int8", "modules", "batch invariant"],
)
async def test_replies_with_adapters_replay_graphs_and_are_those_of_merged_weights(
    architecture: str,
    precision: Precision,
    settings: dict[str, object],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = tiny_model(architecture)
    shapes = linear_shapes(AutoConfig.from_pretrained(folder))
    adapters = {
        "all": write_adapter(tmp_path / "all", shapes, seed=1, size=0.1),
        "qv": write_adapter(tmp_path / "qv", shapes, rank=4, targets=("q_proj", "v_proj"), seed=2, size=0.2),
    }
    hosted = replace(entry(folder, precision=precision, context_length=256, sequence_length=64), adapters=adapters)
    with rehearsal(SimulatedGpu()) as gpu:
        async with serving(hosted, max_running_seqs=4, **settings) as model:
            num_graphs = len(gpu.graphs)
            plain = await replies(model, PROMPTS[:4], temperature=0.0)
            used = [graph.num_replays > 0 for graph in gpu.graphs]
            received = await replies(model, PROMPTS[:4], temperature=0.0, adapters=ROWS)
    # Passes without adapters have separate graphs.
    assert any(used[: num_graphs // 2]) and not any(used[num_graphs // 2 :])
    assert any(graph.num_replays for graph in gpu.graphs[num_graphs // 2 :])
    is_int8 = precision == "bitsandbytes-int8"
    for row, prompt_ids in enumerate(PROMPTS[:4]):
        reference = Reference(folder, is_int8=is_int8)
        reference.assert_greedy([prompt_ids], [plain[row]])
        if ROWS[row]:
            reference.merged(adapters[list(adapters)[ROWS[row] - 1]])
        reference.assert_greedy([prompt_ids], [received[row]], 0.2)
