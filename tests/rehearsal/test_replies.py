"""The whole engine on a simulated GPU: every kind of model, precision and software answers as transformers does."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_server.precision import Precision
from tests.support.engines import entry
from tests.support.rehearsal.engines import PROMPTS, SAMPLINGS, replies, serving
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal
from tests.support.rehearsal.reference import Reference


@dataclass(frozen=True)
class Case:
    """A model on a GPU.

    Attributes:
        architecture: A name of tiny_models.ARCHITECTURES.
        precision: The catalog's precision.
        settings: Settings of the server.
        gpu: Arguments of SimulatedGpu.
        dtype: Dtype of the activations.
        tolerance: See Reference.assert_greedy. bfloat16 and bitsandbytes' own product round more coarsely.
        records: True if decode passes run as CUDA graphs.
        has_varlen: False removes torch.nn.attention.varlen.
    """

    architecture: str = "llama-3"
    precision: Precision = "float16"
    settings: dict[str, object] = field(default_factory=dict)
    gpu: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float16
    tolerance: float = 0.1
    records: bool = True
    has_varlen: bool = True


INT8: Precision = "bitsandbytes-int8"
CASES = {
    "16-bit": Case("llama-2"),
    "bfloat16": Case(precision="bfloat16", dtype=torch.bfloat16, tolerance=0.5),
    "grouped heads": Case("llama-3"),
    "int8": Case(precision=INT8),
    "int8 with outliers": Case(precision=INT8, settings={"int8_threshold": 6.0}, tolerance=0.5, records=False),
    "batch invariant": Case(settings={"batch_invariant": True}),
    "deterministic": Case(settings={"deterministic": True}),
    "sliding windows": Case("mistral"),
    "soft caps": Case("gemma-2"),
    "int8 and soft caps": Case("gemma-2", INT8),
    "biases": Case("qwen-2"),
    "norms of heads": Case("qwen-3"),
    "stacked projections": Case("phi-3"),
    "layers without positions": Case("smollm-3"),
    "factors": Case("granite"),
    "factors and int8": Case("granite", INT8),
    "torch 2.11": Case(has_varlen=False),
    "compute capability 7.5": Case(precision="bfloat16", gpu={"capability": (7, 5)}),
    "without Triton": Case(gpu={"has_triton": False}),
    "int8 without Triton": Case(precision=INT8, gpu={"has_triton": False}, tolerance=0.5),
}


@pytest.mark.rehearsal
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_replies_equal_those_of_transformers_and_every_sampling_completes(
    case: Case, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not case.has_varlen:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    folder = tiny_model(case.architecture)
    reference = Reference(folder, dtype=case.dtype, is_int8=case.precision == INT8)
    hosted = entry(folder, precision=case.precision, context_length=256, sequence_length=64)
    with rehearsal(SimulatedGpu(**case.gpu)) as gpu:
        async with serving(hosted, **case.settings) as model:
            for name, sampling in SAMPLINGS.items():
                received = await replies(model, PROMPTS, **sampling)
                assert [reply.error for reply in received] == [None] * len(PROMPTS)
                assert [len(reply.token_ids) for reply in received] == [6] * len(PROMPTS)
                if name == "greedy":
                    reference.assert_greedy(PROMPTS, received, case.tolerance)
        assert any(graph.num_replays for graph in gpu.graphs) == case.records
