"""Loads an embedding model and its tokenizer, and checks that the model computes packed texts correctly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference_server.cpu.linear.pack import is_packable, pack
from inference_server.embedding import packing
from inference_server.embedding.encoder import Encoder
from inference_server.embedding.model_files import VectorRules, read_rules
from inference_server.embedding.texts import TextEncoder
from inference_server.precision import Precision, activation_dtype
from inference_server.progress import progress
from inference_server.weights.download import local_folder, naming_source
from inference_server.weights.loading_lock import LOADING
from inference_server.weights.source import Weights
from tailrace_shared import garbage
from tailrace_shared.config_errors import ConfigurationError

# Weights of heads that no vector depends on. Checkpoints often lack them.
_UNUSED = ("pooler.", "lm_head.", "cls.")


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """A loaded embedding model.

    Attributes:
        encoder: Computes vectors.
        texts: Converts texts to token ids.
        rules: The model's own pooling and normalisation.
        max_tokens: Longest text in tokens, control tokens included.
        num_bytes: Memory of the weights, in bytes.
    """

    encoder: Encoder
    texts: TextEncoder
    rules: VectorRules
    max_tokens: int
    num_bytes: int


def load_encoder(weights: Weights, precision: Precision, device: torch.device, cache_dir: Path) -> LoadedEncoder:
    """Load one embedding model.

    Args:
        weights: The source of the weights; they are downloaded first if necessary.
        precision: The precision in use on the device (see precision.resolve_precision): float32, float16, bfloat16 or,
            on a CPU, int4.
        device: Device for all tensors.
        cache_dir: Folder for downloaded packages.

    Raises:
        ConfigurationError: The weights are missing or damaged, or the model is not supported; the message has the remedy.
    """
    with naming_source(weights):
        if precision == "bitsandbytes-int8":
            raise ConfigurationError(
                "an embedding model has no bitsandbytes-int8: use float32, float16, bfloat16 or int4"
            )
        folder = local_folder(weights, cache_dir)
        rules = read_rules(folder)
        with progress(f"loading {weights} as {precision}"):
            model, tokenizer = _read(folder, weights, activation_dtype(precision, device), device)
            num_bytes = int(model.get_memory_footprint())
            if device.type == "cpu":
                _pack_linears(model, precision)
            offset = _first_position(model.config)
            limits = (rules.max_tokens, _longest(model.config, offset), _tokenizer_limit(tokenizer))
            encoder = Encoder(model, device, offset)
            encoder.probe()
        return LoadedEncoder(
            encoder,
            TextEncoder(tokenizer, rules),
            rules,
            max_tokens=min(limit for limit in limits if limit is not None),
            num_bytes=num_bytes,
        )


def _read(folder: Path, weights: Weights, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    packing.register()
    with LOADING, garbage.paused():
        from transformers import AutoModel, AutoTokenizer

        model, report = AutoModel.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=dtype,
            attn_implementation=packing.NAME,
            device_map={"": device},
            use_safetensors=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    # transformers fills missing tensors with random numbers and continues.
    lacking = {*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])}
    if missing := sorted(name for name in lacking if not name.startswith(_UNUSED)):
        raise ConfigurationError(f"{weights} lacks {len(missing)} tensors or has them in other shapes: {missing[0]}")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.eval(), tokenizer


def _pack_linears(model: Any, precision: Precision) -> None:
    """Replace the linear layers by those of this CPU's kernels, where they exist for the precision."""
    if precision == "float32":  # there are no such kernels
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if is_packable(child):
                setattr(module, name, pack([child], precision))


def _first_position(config: Any) -> int:
    """Return the position of a text's first token. RoBERTa's family counts from the padding token's id."""
    counts_from_padding = "roberta" in config.model_type or config.model_type == "camembert"
    return int(config.pad_token_id) + 1 if counts_from_padding else 0


def _longest(config: Any, first_position: int) -> int:
    return int(config.max_position_embeddings) - first_position


def _tokenizer_limit(tokenizer: Any) -> int | None:
    """Return the limit of the tokenizer's configuration, or None. transformers has a huge number for no limit."""
    limit = int(tokenizer.model_max_length)
    return limit if limit < 10**9 else None
