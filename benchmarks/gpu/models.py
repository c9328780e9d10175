"""Builds models of Llama-2-7B's shapes, with random or real weights, in 16 bits or bitsandbytes int8."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from inference_server.attention.paged import register

_LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
# A small model, to test the script itself on a CPU.
_TINY = {**_LLAMA_2_7B, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY |= {"num_key_value_heads": 2, "vocab_size": 4096}


def make(device: torch.device, *, path: str | None, tiny: bool, int8: bool, attention: str) -> Any:
    """Return a model on `device`, in float16 (bfloat16 on a CPU).

    With `int8`, its linear layers come from bitsandbytes, with threshold 0.0.
    """
    register()
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    if path is not None:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, device_map={"": device}, attn_implementation=attention, use_safetensors=True
        )
    else:
        config = LlamaConfig(**(_TINY if tiny else _LLAMA_2_7B))
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if int8:
        _quantise(model, device)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def weight_bytes(model: Any) -> int:
    """Return the bytes that a decode step reads: every weight except the embedding table, of which it reads one row."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    skipped = 0 if tied else embedding.numel() * embedding.element_size()
    total: int = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    return total - skipped


def _quantise(model: nn.Module, device: torch.device) -> None:
    """Quantize every linear layer except the head, as transformers does when it loads a model."""
    import bitsandbytes

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                linear = bitsandbytes.nn.Linear8bitLt(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    has_fp16_weights=False,
                    threshold=0.0,
                    device="meta",
                )
                weight = bitsandbytes.nn.Int8Params(
                    child.weight.data.half().cpu(), requires_grad=False, has_fp16_weights=False
                )
                linear.weight = weight.to(device)
                setattr(parent, name, linear)
