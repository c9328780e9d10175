"""Converts the metadata of a GGUF file to a transformers configuration."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from inference_server.precision import Precision
from inference_server.weights.gguf.file import GgufFile, read_rows
from tailrace_shared.config_errors import ConfigurationError

_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
_FREQUENCY_FACTORS = "rope_freqs.weight"
# Lengths before scaling, in positions, of models that scale positions as Llama 3 does. Llama 3 itself has 8192.
_ORIGINAL_LENGTHS = (8192, 4096, 16384, 32768)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def read_model_config(file: GgufFile) -> Any:
    """Return the transformers configuration. The caller holds loading_lock.LOADING.

    Raises:
        ConfigurationError: transformers does not read this architecture from GGUF files, or the rotary positions are
            scaled in a way that this server does not support.
    """
    from transformers import AutoConfig

    from inference_server.weights.gguf.quick_conversion import quick_conversion

    with quick_conversion():
        try:
            config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
        except ValueError as error:
            if "not supported" in str(error):
                raise ConfigurationError(_unsupported(file)) from None
            raise
    head_dim = file.metadata.get(f"{file.architecture}.attention.key_length")
    if isinstance(head_dim, int) and getattr(config, "head_dim", None):
        config.head_dim = head_dim  # transformers reads it for some architectures only
    scaling = _rope_scaling(file, config)
    if scaling:
        rope = dict(config.rope_parameters or {})
        target = rope.get("full_attention", rope)  # models that also have sliding-window layers do not scale those
        target.update(scaling)
        config.rope_parameters = rope
    return config


def end_tokens(file: GgufFile) -> list[int]:
    """Return the ids of the tokens that end a reply: end of text, of a turn, of a message."""
    found = [file.metadata.get(f"tokenizer.ggml.{key}") for key in _END_TOKENS]
    return list(dict.fromkeys(token for token in found if token is not None))


def main_bits(file: GgufFile) -> int:
    """Return the most frequent number of bits per weight in the layers' matrices, or 32 if the file has none.

    Embeddings and the output head do not count.
    """
    counts: Counter[int] = Counter()
    for tensor in file.tensors.values():
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            counts[tensor.format.bits] += tensor.num_weights
    return counts.most_common(1)[0][0] if counts else 32


def natural_precision(path: Path) -> Precision:
    """Return the catalog's precision that is nearest to the weights of a GGUF file.

    Raises:
        ConfigurationError: The file cannot be read, is damaged, or is not supported.
    """
    bits = main_bits(GgufFile(path))
    if bits <= 4:
        return "int4"
    return "bitsandbytes-int8" if bits <= 8 else "bfloat16"


def _unsupported(file: GgufFile) -> str:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    readable = ", ".join(sorted(set(GGUF_SUPPORTED_ARCHITECTURES)))
    return (
        f"cannot load {file.path.name}: its architecture {file.architecture!r} cannot be read from a GGUF file (supported: "
        f"{readable}): use the model's safetensors"
    )


def _rope_scaling(file: GgufFile, config: Any) -> dict[str, Any]:
    """Return the scaling of rotary positions, which transformers does not read; {} if positions are not scaled."""
    prefix = f"{file.architecture}.rope.scaling."
    values = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    kind, factor = values.get("type", "none"), float(values.get("factor", 0.0))
    factor = factor or float(file.metadata.get(f"{file.architecture}.rope.scale_linear", 0.0))
    original = values.get("original_context_length")
    if _FREQUENCY_FACTORS in file.tensors:
        return _llama3(file, config)
    if "rope_factors_short.weight" in file.tensors:
        return _longrope(file, config, original, values.get("attn_factor"))
    if kind == "yarn" and factor:
        scaling = {"rope_type": "yarn", "factor": factor}
        scaling["original_max_position_embeddings"] = original or int(config.max_position_embeddings / factor)
        if "attn_factor" in values:
            scaling["attention_factor"] = values["attn_factor"] * (0.1 * math.log(factor) + 1.0)
        names = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
        return scaling | {name: values[key] for key, name in names.items() if key in values}
    if kind in ("linear", "none") and factor not in (0.0, 1.0):
        return {"rope_type": "linear", "factor": factor}
    if kind not in ("none", "linear", "yarn"):
        raise ConfigurationError(
            f"cannot load {file.path.name}: this server does not support the rotary scaling {kind!r}"
        )
    return {}


def _llama3(file: GgufFile, config: Any) -> dict[str, Any]:
    """Return Llama 3's scaling with the file's frequency factors, or {} if all factors are 1.

    Raises:
        ConfigurationError: Llama 3's scaling does not result in these factors.
    """
    factors = _floats(file, _FREQUENCY_FACTORS)
    if torch.all(factors == 1):
        return {}
    largest = float(factors.max())
    theta = config.rope_parameters["rope_theta"]
    lengths = theta ** (torch.arange(len(factors)) / len(factors)) * (2 * math.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    for original in _ORIGINAL_LENGTHS:
        smooth = ((original / lengths - low) / (high - low)).clamp(0, 1)
        if torch.allclose(1 / ((1 - smooth) / largest + smooth), factors, rtol=1e-3):
            return {"rope_type": "llama3", "factor": largest, "original_max_position_embeddings": original, **_LLAMA3}
    raise ConfigurationError(
        f"cannot load {file.path.name}: the factors of its rotary positions are not those of Llama 3's scaling"
    )


def _longrope(file: GgufFile, config: Any, original: int | None, attention_factor: float | None) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": _floats(file, "rope_factors_short.weight").tolist(),
        "long_factor": _floats(file, "rope_factors_long.weight").tolist(),
        "original_max_position_embeddings": original or config.max_position_embeddings,
    }
    return scaling if attention_factor is None else scaling | {"attention_factor": attention_factor}


def _floats(file: GgufFile, name: str) -> torch.Tensor:
    tensor = file.tensors[name]
    return tensor.format.weights(read_rows(file.path, tensor, 0, tensor.num_rows)).flatten()
