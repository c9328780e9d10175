"""Builds models with the shapes of real models, with random or real weights, in 16 bits or bitsandbytes int8."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.checks import LeftOut, Setup
from inference_server.attention import paged

_LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
_LLAMA_3_2_1B = {
    **_LLAMA_2_7B,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
_TINY = {
    **_LLAMA_2_7B,
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.08,  # larger than the default, so that attention weights are not almost equal
}
TAILRACE = paged.NAME  # name of Tailrace's attention function in transformers' registry
SHAPES: dict[str, dict[str, Any]] = {"llama-2-7b": _LLAMA_2_7B, "llama-3.2-1b": _LLAMA_3_2_1B, "tiny": _TINY}
# Bytes for the weights of the 7B shapes in 16 bits, a KV cache for the longest load, and the libraries.
_BYTES_FOR_7B = 19 * 2**30


def default_shapes(device: torch.device) -> str:
    """Return the largest shapes that fit the device: Llama-2-7B from 19 GiB, else Llama-3.2-1B; tiny on a CPU."""
    if device.type != "cuda":
        return "tiny"
    total = torch.cuda.get_device_properties(device).total_memory
    return "llama-2-7b" if total >= _BYTES_FOR_7B else "llama-3.2-1b"


def make(setup: Setup, *, int8: bool = False, attention: str = TAILRACE, num_layers: int | None = None) -> Any:
    """Return the setup's model on its device.

    Args:
        setup: Device, shapes and path of the weights.
        int8: True replaces the linear layers, except the output head, with bitsandbytes' int8 layers of threshold 0.
        attention: transformers' name of the attention function.
        num_layers: Number of layers, if fewer than the shapes have. Has no effect with real weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if setup.path is None:
        config = AutoConfig.for_model("llama", **SHAPES[setup.shapes])
        config.num_hidden_layers = num_layers or config.num_hidden_layers
        model = random_model(config, setup, attention)
    else:
        paged.register()
        model = AutoModelForCausalLM.from_pretrained(
            setup.path,
            dtype=setup.dtype,
            device_map={"": setup.device},
            attn_implementation=attention,
            use_safetensors=True,
        )
        _prepare(model)
    if int8:
        quantise(model)
    return model


def random_model(config: Any, setup: Setup, attention: str = TAILRACE) -> Any:
    """Return a model with random weights. The same configuration gives the same weights."""
    from transformers import AutoModelForCausalLM

    paged.register()
    torch.manual_seed(0)
    with torch.device(setup.device):
        model = AutoModelForCausalLM.from_config(config, dtype=setup.dtype, attn_implementation=attention)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which are otherwise all 1 or all 0
                parameter.data += torch.randn_like(parameter) * 0.1
    return _prepare(model)


def _prepare(model: Any) -> Any:
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def weight_bytes(model: Any) -> int:
    """Return the bytes that a decode step reads: all weights except the embedding table, of which it reads only a few rows."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    skipped = 0 if tied else embedding.numel() * embedding.element_size()
    total: int = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    return total - skipped


def cache_bytes_per_token(config: Any) -> int:
    """Return the bytes of one token's keys and values in all layers, in 16 bits."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_layer: int = 2 * config.num_key_value_heads * head_dim * 2
    return per_layer * int(config.num_hidden_layers)


def int8_linear(weight: Tensor) -> nn.Module:
    """Return bitsandbytes' int8 layer with threshold 0 for a weight (out_features, in_features), on the weight's device.

    Raises:
        LeftOut: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise LeftOut(f"bitsandbytes cannot be imported: {error}") from error
    codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.detach().half())
    linear = bitsandbytes.nn.Linear8bitLt(
        weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False, threshold=0.0, device="meta"
    )
    linear.weight = bitsandbytes.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    module: nn.Module = linear.eval()
    return module


def quantise(model: nn.Module) -> None:
    """Replace every linear layer except the output head with bitsandbytes' int8 layer, as transformers does."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                setattr(parent, name, int8_linear(child.weight))


def dequantise(model: Any, dtype: torch.dtype) -> None:
    """Replace bitsandbytes' int8 layers with 16-bit layers whose weights are those that the codes represent."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Linear8bitLt":
                # The first pass moves the scales from the weight to `state`.
                scales = child.state.SCB if child.weight.SCB is None else child.weight.SCB
                weight = child.weight.data.float() * (scales.float() / 127.0)[:, None]
                linear = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
                setattr(parent, name, linear)
