"""Which models have a fused decoder, and what extraction leaves of the others."""

import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from inference_server.gpu.decoder import extract
from tests.inference_server.gpu.models import load, quantize
from tests.support.models.tiny_models import ARCHITECTURES


def other_activation(model):
    model.model.layers[1].mlp.act_fn = nn.GELU()


def other_norm(model):
    model.model.layers[1].input_layernorm = nn.LayerNorm(64)


def other_epsilon(model):
    model.model.layers[1].self_attn.q_norm.variance_epsilon = 0.5


def other_linear(model):
    model.model.layers[2].self_attn.v_proj = nn.Identity()


def other_dtype(model):
    model.model.layers[2].mlp.down_proj.half()


def outliers(model):
    quantize(model, dequantized=False)
    model.model.layers[2].mlp.down_proj.state.threshold = 6.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_activation, "activation"),
        (other_norm, "norms"),
        (other_epsilon, "epsilon"),
        (other_linear, "linear layers"),
        (other_dtype, "linear layers"),
        (outliers, "TAILRACE_INT8_THRESHOLD"),
    ],
)
def test_a_model_without_a_fused_decoder_is_refused_and_unchanged(change, reason, tiny_model):
    model = load(tiny_model("qwen-3"))
    change(model)
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=reason):
        extract(model)
    assert dict(model.named_modules()) == before


def test_an_architecture_with_other_operations_is_refused(tiny_model):
    with pytest.raises(ValueError, match="architecture"):
        extract(load(tiny_model("gemma-2")))


def test_rotary_positions_that_depend_on_the_length_are_refused():
    config = ARCHITECTURES["llama-2"]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 2.0,
        "long_factor": [2.0] * 8,
        "short_factor": [1.0] * 8,
        "original_max_position_embeddings": 64,
    }
    config = type(config)(**{**config.to_dict(), "num_hidden_layers": 1, "rope_parameters": rope})
    with pytest.raises(ValueError, match="longrope"):
        extract(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("is_int8", [False, True], ids=["16-bit", "int8"])
def test_extraction_stacks_layers_and_removes_the_models_own(is_int8, tiny_model):
    model = load(tiny_model("qwen-2"))
    if is_int8:
        quantize(model, dequantized=False)
    projections = model.model.layers[0].self_attn
    inputs = torch.randn(3, 64)
    weight = weakref.ref(projections.k_proj.weight)
    expected = [getattr(projections, name).bias.clone() for name in ("q_proj", "k_proj", "v_proj")]
    decoder = extract(model)
    assert weight() is None
    assert torch.equal(decoder.layers[0].qkv.bias, torch.cat(expected))
    assert decoder.layers[0].qkv(inputs).shape == (3, 64 + 2 * 32)
    assert decoder.layers[0].gate_up.bias is None
    assert [type(module).__name__ for module in model.modules() if "Linear" in type(module).__name__] == ["Linear"]


def test_sliding_windows_differ_from_layer_to_layer(tiny_model):
    config = type(ARCHITECTURES["qwen-2"])(
        **{
            **ARCHITECTURES["qwen-2"].to_dict(),
            "use_sliding_window": True,
            "sliding_window": 24,
            "max_window_layers": 1,
        }
    )
    config.layer_types = ["full_attention", "sliding_attention", "sliding_attention"]
    decoder = extract(AutoModelForCausalLM.from_config(config))
    assert [layer.attention.sliding_window for layer in decoder.layers] == [None, 24, 24]
