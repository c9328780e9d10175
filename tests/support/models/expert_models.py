"""Tiny random mixture-of-experts models of transformers, and their weights as the server rounds them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from inference_server.cpu.linear.integer_weights import int4_weights, int8_weights
from inference_server.linears.experts import is_stack, weight_names
from inference_server.linears.plain import PlainLinear, is_linear
from tests.support.models.tiny_models import VOCAB_SIZE, sentencepiece_tokenizer

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
}
_OTHERS = {"num_experts": 4, "moe_intermediate_size": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

EXPERT_MODELS: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**_SIZES, num_local_experts=4, head_dim=32),
    "olmoe": OlmoeConfig(**_SIZES, **{key: _OTHERS[key] for key in _OTHERS if key != "moe_intermediate_size"}),
    "qwen-2": Qwen2MoeConfig(**_SIZES, **_OTHERS, shared_expert_intermediate_size=64, decoder_sparse_step=1),
    "qwen-3": Qwen3MoeConfig(**_SIZES, **_OTHERS, head_dim=32, decoder_sparse_step=1, norm_topk_prob=True),
    # Gate and up outputs alternate, weights are transposed, experts and router have biases, and attention has sinks.
    "gpt-oss": GptOssConfig(
        **_SIZES,
        **{key: _OTHERS[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        num_local_experts=4,
        head_dim=32,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


def expert_model(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """Return a model of transformers. `changes`: other values of its configuration."""
    torch.manual_seed(seed)
    config = type(EXPERT_MODELS[name])(**{**EXPERT_MODELS[name].to_dict(), **changes})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.numel() < 64:  # sinks and the router's biases, which are all zero
            nn.init.normal_(parameter)
    return model.eval()


def write_expert_model(folder: Path, name: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Write a model with a tokenizer to a folder, and return it. See `expert_model`."""
    model = expert_model(name, dtype=dtype, **changes)
    model.save_pretrained(folder)
    sentencepiece_tokenizer().save_pretrained(folder)
    return model


@torch.no_grad()
def round_weights(model: Any, precision: str) -> None:
    """Round the weights of linear layers and experts in place, as the server does without bitsandbytes."""
    head = model.get_output_embeddings()
    for module in model.modules():
        is_int4 = precision == "int4" and module is not head
        if is_stack(module):
            for name in weight_names(module):
                for weight in getattr(module, name):
                    matrix = weight.t() if module.is_transposed else weight
                    matrix.copy_(_rounded(matrix, is_int4))
        elif is_linear(module):
            module.weight.copy_(_rounded(module.weight, is_int4))


def _rounded(weight: torch.Tensor, is_int4: bool) -> torch.Tensor:
    parts = [PlainLinear(weight)]
    return (int4_weights(parts) if is_int4 else int8_weights(parts)).dequantize()
