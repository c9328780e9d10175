"""LoRA adapters for tests and benchmarks: random matrices in PEFT's format, and the same model with merged weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_BLOCKS = {"self_attn": ALL[:4], "mlp": ALL[4:]}


def linear_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of the linear layers of a Llama-like model, by name, from its configuration."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, kv_heads = config.num_attention_heads * width, config.num_key_value_heads * width
    hidden, inner = config.hidden_size, config.intermediate_size
    outputs = dict(zip(ALL, (heads, kv_heads, kv_heads, hidden, inner, inner, hidden), strict=True))
    inputs = dict.fromkeys(ALL, hidden) | {"o_proj": heads, "down_proj": inner}
    return {
        f"model.layers.{layer}.{block}.{name}": (outputs[name], inputs[name])
        for layer in range(config.num_hidden_layers)
        for block, names in _BLOCKS.items()
        for name in names
    }


def write_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    *,
    rank: int = 8,
    targets: tuple[str, ...] = ALL,
    seed: int = 0,
    size: float = 0.3,
    **config: object,
) -> Path:
    """Write an adapter with random matrices for the layers of `shapes` that end with one of `targets`. Returns the folder.

    Args:
        folder: The new folder.
        shapes: Outputs and inputs of the model's linear layers, by name.
        rank: The rank of the matrices.
        targets: Last parts of the names of adapted layers.
        seed: Seed of the matrices.
        size: Standard deviation of their numbers.
        config: Further keys of adapter_config.json.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, (outputs, inputs) in shapes.items():
        if name.rpartition(".")[2] in targets:
            for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                tensors[f"base_model.model.{name}.lora_{side}.weight"] = size * torch.randn(*shape, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    document = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(targets), **config}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def merge(model: Any, folder: Path) -> Any:
    """Add an adapter to the weights of a transformers model in place, and return the model.

    Independent of the server's own reader. Only for adapters with the factor lora_alpha / r.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, module in model.named_modules():
        key = f"base_model.model.{name}.lora_"
        if f"{key}A.weight" in tensors:
            product = tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"] * (config["lora_alpha"] / config["r"])
            module.weight.data += product.to(module.weight.dtype)
    return model
