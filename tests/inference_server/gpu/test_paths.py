"""The way in which models run on a GPU, decided from their configurations."""

import pytest
from transformers import Gemma2Config, LlamaConfig, Qwen3Config

from inference_server.gpu.paths import choose_path, has_fused_layers

LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(architectures=["LlamaForCausalLM"]), True),
        (Qwen3Config(architectures=["Qwen3ForCausalLM"]), True),
        (Gemma2Config(architectures=["Gemma2ForCausalLM"]), False),
        (LlamaConfig(architectures=["LlamaForCausalLM"], hidden_act="gelu"), False),
        (LlamaConfig(architectures=["LlamaForCausalLM"], rope_parameters=LONGROPE), True),
        (LlamaConfig(), False),
    ],
    ids=["llama", "qwen 3", "gemma 2", "gelu", "longrope", "unnamed"],
)
def test_fused_layers_need_a_known_architecture(config, expected):
    assert has_fused_layers(config) == expected


@pytest.mark.parametrize(
    ("precision", "threshold", "has_triton", "expected"),
    [
        ("float16", 0.0, True, ("fused", None, True)),
        ("float16", 6.0, False, ("fused", None, True)),
        ("bitsandbytes-int8", 0.0, True, ("fused", "kernels", True)),
        ("bitsandbytes-int8", 6.0, True, ("modules", "bitsandbytes", False)),
        ("bitsandbytes-int8", 0.0, False, ("modules", "bitsandbytes", True)),
    ],
)
def test_int8_weights_decide_the_layers_and_the_graphs(precision, threshold, has_triton, expected):
    path = choose_path(True, precision, int8_threshold=threshold, has_triton=has_triton)
    assert (path.layers, path.int8, path.records_graphs) == expected
