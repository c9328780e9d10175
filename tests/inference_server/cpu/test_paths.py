"""The description of how a model runs on a CPU: the prediction from its configuration is the path in use."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inference_server.attention.paged import NAME, register
from inference_server.cpu.fused_modules import fuse
from inference_server.cpu.paths import CpuPath, predicted_path
from inference_server.kernels.isa import choice
from inference_server.model.runner import ModelRunner
from inference_server.precision import activation_dtype, cache_dtype
from inference_server.weights.sizes import read_config
from inference_server.weights.source import Weights
from tests.support.models.expert_models import write_expert_model

CPU = torch.device("cpu")


def path_in_use(folder, precision):
    register()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=activation_dtype(precision, CPU), attn_implementation=NAME
    )
    fuse(model, precision, batch_invariant=False)
    return ModelRunner(model, num_blocks=4, cache_dtype=cache_dtype(precision)).path


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [
        ("llama-2-heads-of-32", "bfloat16"),
        ("llama-2-heads-of-32", "bitsandbytes-int8"),
        ("llama-2-heads-of-32", "int4"),
        ("llama-2-heads-of-32", "float32"),
        ("llama-2", "int4"),
        ("mistral", "bfloat16"),
        ("qwen-3", "bfloat16"),
        ("phi-3", "bfloat16"),
        ("smollm-3", "int4"),
        ("granite", "bfloat16"),
        ("gemma-2", "bitsandbytes-int8"),
    ],
)
def test_the_predicted_path_is_the_path_in_use(tiny_model, architecture, precision):
    folder = tiny_model(architecture)
    assert str(predicted_path(AutoConfig.from_pretrained(folder), precision)) == path_in_use(folder, precision)


def test_a_configuration_without_architectures_as_that_of_a_gguf_file_has_the_path_of_its_model(tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model("llama-2-heads-of-32"))
    named = predicted_path(config, "int4")
    config.architectures = None
    config.save_pretrained(tmp_path)
    assert predicted_path(read_config(Weights(path=tmp_path), tmp_path, may_fetch=False), "int4") == named


@pytest.mark.parametrize("name", ["mixtral", "qwen-3", "olmoe"])
def test_the_predicted_path_of_a_model_with_experts_is_the_path_in_use(name, tmp_path):
    write_expert_model(tmp_path, name)
    found = path_in_use(tmp_path, "int4")
    assert str(predicted_path(AutoConfig.from_pretrained(tmp_path), "int4")) == found
    if choice.obstacle() is None:
        assert ("one program" in found) == (name != "olmoe")


def test_without_kernels_the_path_names_the_reason(tiny_model, monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "none")
    folder = tiny_model("llama-2-heads-of-32")
    path = path_in_use(folder, "float32")
    assert path.startswith("torch's operations, modules of transformers (TAILRACE_CPU_FEATURES=none")
    assert str(predicted_path(AutoConfig.from_pretrained(folder), "float32")) == path


def test_a_path_reads_as_a_phrase():
    assert str(CpuPath("avx2", "all")) == "kernels for avx2, one program of compiled kernels"
