"""Determines the dtype in which a model's experts are stored, and keeps them in 16 bits until they are packed.

On a CPU, quantised models are packed from float32. Most of a model's weights belong to experts, and their float32 copy
would be twice as large as the 16-bit checkpoint. So a model with experts is loaded in its checkpoint's dtype, and
everything except the experts is widened afterwards. Packing then reads the experts one after the other.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference_server.linears.experts import is_stack

MXFP4 = "mxfp4"
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return config


def quantisation_method(folder: Path) -> str | None:
    """Return the name of the method by which a checkpoint is quantised, such as "mxfp4", or None."""
    described = _config(folder).get("quantization_config")
    method: str | None = described.get("quant_method") if isinstance(described, dict) else None
    return method


def narrow_dtype(folder: Path, precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype in which a model with experts is loaded, or None to load it in the activations' dtype.

    Args:
        folder: The folder with the model's own files.
        precision: The precision in use on the device.
        device: A CPU or a GPU.
    """
    if device.type != "cpu" or precision not in ("bitsandbytes-int8", "int4"):
        return None
    config = _config(folder)
    parts = [config, *(part for part in (config.get("text_config"),) if isinstance(part, dict))]
    if not any(part.get(name) for part in parts for name in _COUNTS):
        return None
    if quantisation_method(folder) == MXFP4:
        return torch.bfloat16
    names = [part.get("dtype") or part.get("torch_dtype") for part in parts]
    return next((_DTYPES[name] for name in names if name in _DTYPES), None)


def widen_rest(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert every 16-bit tensor of a model to `dtype`, except the stacked weights and biases of experts."""
    for module in model.modules():
        if is_stack(module):
            continue
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for _, tensor in tensors:
            if tensor.dtype in _DTYPES.values():
                tensor.data = tensor.data.to(dtype)
