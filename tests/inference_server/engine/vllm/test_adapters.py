"""LoRA adapters of a model that vLLM runs: the engine arguments, and the request for each adapter."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from inference_server.engine.vllm.client import VllmClient
from inference_server.engine.vllm.engine_args import adapter_arguments
from tests.support.models.adapters import write_adapter

SHAPES = {"model.layers.0.self_attn.q_proj": (16, 16)}


def test_the_engine_arguments_have_the_number_and_the_largest_rank(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(rank), SHAPES, rank=rank) for rank in (4, 24)]
    folders.append(write_adapter(tmp_path / "pattern", SHAPES, rank=8, rank_pattern={"up_proj": 40}))
    assert adapter_arguments(folders[:2]) == {"enable_lora": True, "max_loras": 2, "max_lora_rank": 32}
    assert adapter_arguments(folders)["max_lora_rank"] == 64
    assert adapter_arguments(folders * 9)["max_loras"] == 16
    assert adapter_arguments([]) == {}


def test_each_adapter_has_a_request_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm.lora.request")
    module.LoRARequest = lambda *fields: fields  # type: ignore[attr-defined]
    for name, each in (("vllm", ModuleType("vllm")), ("vllm.lora", ModuleType("vllm.lora")), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, each)
    client = SimpleNamespace(_adapters=(tmp_path / "a", tmp_path / "b"))
    found = [VllmClient._lora_arguments(client, adapter) for adapter in (0, 2)]  # type: ignore[arg-type]
    assert found == [{}, {"lora_request": ("adapter-2", 2, str(tmp_path / "b"))}]
