"""Estimates a model's memory from its configuration file or GGUF header. Imports neither torch nor transformers.

The counts assume a usual decoder. weights/sizes.py counts exactly, but needs transformers to build the model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from inference_server.attention.rope import scaled_window
from inference_server.attention.rope import window as rope_window
from inference_server.precision import Precision
from inference_server.weights.gguf.header import GgufHeader, read_header
from tailrace_shared.config_errors import ConfigurationError

# Feed-forward layers have two matrices in these architectures, and three in all others.
_WITHOUT_GATE = {
    "gpt2",
    "gpt_neox",
    "gptj",
    "gpt_bigcode",
    "phi",
    "opt",
    "falcon",
    "bloom",
    "mpt",
    "starcoder2",
    "bert",
    "roberta",
    "xlm-roberta",
    "mpnet",
}
# Bytes per weight of a linear layer. A group of 32 weights in int4 has two 16-bit constants: 4 + 32 / 32 bits per weight.
_LINEAR_BYTES: Mapping[Precision, float] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "bitsandbytes-int8": 1,
    "int4": 0.625,
}
# Bytes per weight of a linear layer while transformers loads a model. int4 is computed from float32.
_LOADED_BYTES: Mapping[Precision, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "bitsandbytes-int8": 1,
    "int4": 4,
}
_WIDE = ("float16", "bfloat16")  # precisions with embeddings in 16 bits; in all others, embeddings have 32 bits
_FILE_COPIES = 1.5  # peak memory while a GGUF file is loaded, as a multiple of the packed weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder, as numbers of elements or of layers, not in bytes.

    Attributes:
        linear_weights: Weights of the linear layers, without the output head.
        vocab_weights: Number of weights of the embedding. The output head has the same number.
        is_tied: True if the output head and the embedding share their weights.
        kv_width: Number of elements of one token's keys and values in one layer, together.
        num_layers: Number of layers.
        max_tokens: The model's window in tokens; None: not given.
        quantized_bits: Bits per weight of a quantised checkpoint; None: it is not quantised, or it is a GGUF file.
        is_file: True for a GGUF file, whose weights are packed without an unpacked copy.
        has_experts: True for a mixture of experts. The experts' weights stay in 16 bits until they are packed.
    """

    linear_weights: int
    vocab_weights: int
    is_tied: bool
    kv_width: int
    num_layers: int
    max_tokens: int | None
    quantized_bits: int | None = None
    is_file: bool = False
    has_experts: bool = False

    def weight_bytes(self, precision: Precision, device_type: str) -> int:
        """Return the memory of the weights, in bytes. `device_type` is "cpu" or "cuda"."""
        linear = self.linear_weights * _LINEAR_BYTES[precision]
        if device_type == "cuda":
            wide = 4 if precision == "float32" else 2
            return int(linear + wide * self.vocab_weights * (1 if self.is_tied else 2))
        # On a CPU, the output head is a separate packed copy. The embedding is not loaded: a forward pass reads only a
        # few of its rows from the file.
        head = {"float32": 4, "int4": 1, "bitsandbytes-int8": 1}.get(precision, 2)
        return int(linear + head * self.vocab_weights)

    def load_bytes(self, precision: Precision) -> int:
        """Return the peak memory of the weights, in bytes, while a model is loaded on a CPU and packed for the first time."""
        packed = self.weight_bytes(precision, "cpu")
        if self.is_file:
            return int(_FILE_COPIES * packed)
        linear = 2 if self.has_experts else _LOADED_BYTES[precision]
        vocab = self.vocab_weights * (1 if self.is_tied else 2) * (2 if precision in _WIDE else 4)
        # At the end, all packed weights are copied into large pages.
        return max(linear * self.linear_weights + vocab, 2 * packed)

    def window(self, rope: Mapping[str, Any] | None) -> int | None:
        """Return the longest sequence in tokens, or None if it is not given. `rope`: the catalog's scaling, if any."""
        if rope and self.max_tokens:
            return scaled_window(rope, self.max_tokens)
        return self.max_tokens

    def token_bytes(self, precision: Precision) -> int:
        """Return the memory of the keys and values of one token in all layers, in bytes."""
        return self.num_layers * self.kv_width * (4 if precision == "float32" else 2)


def read_shape(path: Path) -> ModelShape | None:
    """Return the sizes of a model, or None if its configuration lacks the usual keys.

    Args:
        path: A GGUF file, or a folder with a config.json.

    Raises:
        ConfigurationError: The file is damaged.
    """
    if path.suffix == ".gguf":
        try:
            return _cached_shape(path, path.stat().st_mtime_ns)
        except OSError as error:
            raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    config = read_config_file(path)
    try:
        return _shape_of_config(config)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return None


@lru_cache
def _cached_shape(path: Path, changed: int) -> ModelShape | None:
    """Return the sizes of the model in a GGUF file, which several catalog entries may share.

    `changed` is the time of the file's last change, so that a changed file is read again.
    """
    return _shape_of_gguf(read_header(path))


def read_config_file(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's config.json; empty if there is none.

    Raises:
        ConfigurationError: The file is not a JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise ConfigurationError(f"{folder / 'config.json'} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{folder / 'config.json'} is not a JSON object")
    return config


def _shape_of_config(whole: dict[str, Any]) -> ModelShape:
    """Return the sizes. Raises KeyError or TypeError if a key is missing."""
    config = whole.get("text_config") or whole

    def first(*names: str) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), None)

    hidden, layers = first("hidden_size", "n_embd", "d_model"), first("num_hidden_layers", "n_layer", "n_layers")
    heads = first("num_attention_heads", "n_head", "n_heads")
    kv_heads, head_dim = first("num_key_value_heads") or heads, first("head_dim") or hidden // heads
    inner = first("intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    matrices = 2 if config.get("model_type") in _WITHOUT_GATE else 3
    experts = first("num_local_experts", "num_experts", "n_routed_experts") or 1
    if experts > 1:
        inner = first("moe_intermediate_size") or inner
    attention = hidden * head_dim * 2 * (heads + kv_heads)
    return ModelShape(
        linear_weights=layers * (attention + experts * matrices * hidden * inner),
        vocab_weights=config["vocab_size"] * hidden,
        is_tied=bool(first("tie_word_embeddings")),
        kv_width=2 * kv_heads * head_dim,
        num_layers=layers,
        max_tokens=_own_window(config, first("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")),
        quantized_bits=_quantized_bits(whole.get("quantization_config") or {}),
        has_experts=experts > 1,
    )


def _quantized_bits(quantization: Mapping[str, Any]) -> int | None:
    """Return the bits per weight of a checkpoint with this `quantization_config`; None if it does not name them."""
    if quantization.get("bits"):
        return int(quantization["bits"])
    groups = list((quantization.get("config_groups") or {}).values())  # only in compressed-tensors
    bits = [(group.get("weights") or {}).get("num_bits") for group in groups]
    if any(bits):
        return max(int(each) for each in bits if each)
    return 8 if quantization.get("quant_method") == "fp8" else None


def _own_window(config: Mapping[str, Any], limit: int | None) -> int | None:
    """Return the longest sequence in tokens. `limit`: the one in the configuration, before dynamic scaling extends it."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {**given, "rope_type": given.get("rope_type") or given.get("type")}
    return rope_window(SimpleNamespace(max_position_embeddings=limit, rope_parameters=rope))


def _shape_of_gguf(header: GgufHeader) -> ModelShape | None:
    layers, hidden, heads = (header.number(key) for key in ("block_count", "embedding_length", "attention.head_count"))
    if not (layers and hidden and heads):
        return None
    kv_heads = header.number("attention.head_count_kv") or heads
    width = header.number("attention.key_length") or hidden // heads
    value_width = header.number("attention.value_length") or width
    weights = {tensor.name: tensor.num_weights for tensor in header.tensors if len(tensor.shape) > 1}
    linear = [name for name in weights if name.startswith("blk.")]
    return ModelShape(
        linear_weights=sum(weights[name] for name in linear),
        vocab_weights=weights.get("token_embd.weight", 0),
        is_tied="output.weight" not in weights,
        kv_width=kv_heads * (width + value_width),
        num_layers=layers,
        max_tokens=header.number("context_length"),
        is_file=True,
    )
