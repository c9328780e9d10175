"""Loads a transformers model from a GGUF file."""

from pathlib import Path
from typing import Any

import torch

from inference_server.precision import Precision, activation_dtype
from inference_server.weights.gguf.config import main_bits
from inference_server.weights.gguf.file import GgufFile
from inference_server.weights.gguf.module import (
    ModuleFiller,
    empty_model,
    quantise_linears,
    stored_embedding,
    stored_linears,
)
from inference_server.weights.gguf.places import Places
from inference_server.weights.gguf.quick_conversion import quick_conversion


def load_module(
    path: Path,
    folder: Path,
    precision: Precision,
    device: torch.device,
    *,
    int8_threshold: float = 0.0,
    attention_name: str,
) -> Any:
    """Return the model with all its weights on `device`. The caller holds loading_lock.LOADING.

    Args:
        path: The GGUF file.
        folder: The folder that describes it (description.describe_file).
        precision: The precision in use on the device. int4 weights are loaded as float32.
        device: Device for all tensors.
        int8_threshold: Outlier threshold of bitsandbytes, 0 for none.
        attention_name: Attention function, by its name in transformers' registry.

    Raises:
        ConfigurationError: The file is damaged, or lacks tensors.
    """
    file, dtype = GgufFile(path), activation_dtype(precision, device)
    if not _has_names(file):
        return _load_with_transformers(path, folder, dtype, device, attention_name)
    model = _empty(folder, dtype, attention_name)
    if precision == "bitsandbytes-int8":
        quantise_linears(model, int8_threshold)
    filler = ModuleFiller(file, model)
    filler.fill(dtype, device)
    filler.check()
    return model.to(device).eval()


def load_stored(
    path: Path, folder: Path, precision: Precision, places: Places, attention_name: str
) -> tuple[Any, ModuleFiller | None]:
    """Return the model on the CPU, with linear layers whose weights are still in the file, and its ModuleFiller.

    If transformers maps the architecture's tensors only inside from_pretrained, the model is complete and the filler is
    None. The caller holds loading_lock.LOADING, and replaces the linear layers (cpu.fused_modules.fuse). `places` is
    memory for the packed layers. The other arguments and the errors are those of `load_module`.
    """
    cpu = torch.device("cpu")
    file, dtype = GgufFile(path), activation_dtype(precision, cpu)
    if not _has_names(file):
        return _load_with_transformers(path, folder, dtype, cpu, attention_name), None
    model = _empty(folder, dtype, attention_name)
    filler = ModuleFiller(file, model)
    left = {f"{name}.weight" for name, _, _ in filler.linears()}
    if embedding := filler.embedding(dtype):
        parameter = f"{embedding[0]}.weight"
        filler.sources[parameter] = embedding[1]
        left.add(parameter)
    filler.fill(dtype, cpu, leave=left.__contains__)
    stored_linears(filler, model, places, widens=main_bits(file) <= 4)
    stored_embedding(filler, model, dtype)
    filler.check()
    return model.eval(), filler


def _has_names(file: GgufFile) -> bool:
    """Return False for the architectures whose tensors transformers maps only inside from_pretrained."""
    try:
        from transformers.integrations.gguf import is_gguf_arch_supported
    except ImportError:  # releases that map all architectures in the same way
        return True
    return not is_gguf_arch_supported(file.architecture)


def _empty(folder: Path, dtype: torch.dtype, attention_name: str) -> Any:
    from transformers import AutoConfig, GenerationConfig

    model = empty_model(AutoConfig.from_pretrained(folder), dtype, attention_name)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _load_with_transformers(
    path: Path, folder: Path, dtype: torch.dtype, device: torch.device, attention_name: str
) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    with quick_conversion():
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            attn_implementation=attention_name,
            device_map={"": device},
        )
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()
