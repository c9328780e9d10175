"""The GPU check's own code for GPUs (benchmarks/gpu) on the simulated GPU. Its figures mean nothing there."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from benchmarks.gpu import models
from benchmarks.gpu import state as states
from benchmarks.gpu.checks import Setup
from benchmarks.gpu.part import MODULES, Recorder
from tests.support.rehearsal.fake_tensor import CUDA, CudaTensor, to_cuda
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal

CPU = Setup(torch.device("cpu"), "tiny")
GPU = Setup(CUDA, "tiny", tokens=6)
# Per part, the checks that the simulation can run within seconds. It has no profiler for a GPU, and replays at all 64 batch
# sizes take minutes.
CHECKS = {
    "probe": None,
    "correctness": {
        "kernels of Llama-2-7B",
        "16-bit and transformers",
        "int8 and transformers",
        "windows and other families",
        "batch invariance",
        "two engines at once",
    },
    "micro": {"products, bitsandbytes int8", "small kernels", "prefill attention"},
}


def made(setup: Setup, *, int8: bool = False, attention: str = models.TAILRACE, num_layers: int | None = None) -> Any:
    """Return the model under the CUDA label, or on the CPU if transformers computes it."""
    config = AutoConfig.for_model("llama", **models.SHAPES["tiny"])
    config.num_hidden_layers = num_layers or config.num_hidden_layers
    return labelled(config, setup, attention, int8)


random_model, int8_linear = models.random_model, models.int8_linear  # before they are replaced


def labelled(config: Any, setup: Setup, attention: str = models.TAILRACE, int8: bool = False) -> Any:
    """Return a float16 model for the simulation. Its weights are made and quantized on the CPU."""
    with torch.utils._python_dispatch._disable_current_modes(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        model = random_model(config, CPU, attention).half()
        if int8:
            models.quantise(model)
    return to_cuda(model) if attention == models.TAILRACE else model


def int8_layer(weight: Any) -> Any:
    """Return bitsandbytes' layer of a weight. Its integers are made on the CPU."""
    if not isinstance(weight, CudaTensor):
        return int8_linear(weight)
    with torch.utils._python_dispatch._disable_current_modes():
        return to_cuda(int8_linear(weight.inner))


@pytest.fixture
def simulated_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checks make models for the simulation. Their modules are imported before it begins."""
    pytest.importorskip("bitsandbytes")
    for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2"):
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    monkeypatch.setattr(models, "make", made)
    monkeypatch.setattr(models, "random_model", labelled)
    monkeypatch.setattr(models, "int8_linear", int8_layer)


@pytest.mark.rehearsal
@pytest.mark.parametrize("part", CHECKS)
def test_checks_for_a_gpu_run_without_waiting_in_a_recording(part: str, simulated_models: None, tmp_path: Path) -> None:
    module = importlib.import_module(f"benchmarks.gpu.parts.{MODULES[part]}")
    checks = [check for check in module.CHECKS if CHECKS[part] is None or check.name in CHECKS[part]]
    with rehearsal(SimulatedGpu()):
        Recorder(tmp_path / "state.json", GPU, 110.0).run(part, checks)
    recorded = states.read(tmp_path / "state.json")["checks"]
    assert {name: check["status"] for name, check in recorded.items()} == {check.name: "ok" for check in checks}
