"""Loads an embedding model and its tokenizer, and checks that the model computes packed texts correctly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference_server.embedding import bert
from inference_server.embedding.encoder import Encoder, TokenModel
from inference_server.embedding.model_files import VectorRules, read_rules
from inference_server.embedding.positions import longest_text
from inference_server.embedding.texts import TextEncoder
from inference_server.precision import Precision, activation_dtype
from inference_server.progress import progress
from inference_server.weights.download import naming_source, weights_folder
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError


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
        cache_dir: The server's cache folder.

    Raises:
        ConfigurationError: The weights are missing or damaged, or the model is not supported; the message contains the
            remedy.
    """
    with naming_source(weights):
        if precision == "bitsandbytes-int8":
            raise ConfigurationError(
                "an embedding model has no bitsandbytes-int8: use float32, float16, bfloat16 or int4"
            )
        folder = weights_folder(weights, cache_dir)
        rules = read_rules(folder)
        with progress(f"loading {weights} as {precision}"):
            from transformers import AutoConfig, AutoTokenizer

            config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            model = _model(folder, config, precision, device)
            with torch.inference_mode():
                model.probe()
        limits = (rules.max_tokens, longest_text(config), _tokenizer_limit(tokenizer))
        return LoadedEncoder(
            Encoder(model),
            TextEncoder(tokenizer, rules),
            rules,
            max_tokens=min(limit for limit in limits if limit is not None),
            num_bytes=model.num_bytes,
        )


def _model(folder: Path, config: Any, precision: Precision, device: torch.device) -> TokenModel:
    dtype = activation_dtype(precision, device)
    if bert.supports(config, folder):
        return bert.BertModel(folder, config, precision, dtype, device)
    # Importing the model classes of transformers takes seconds.
    from inference_server.embedding.transformers_model import TransformersModel

    return TransformersModel(folder, precision, dtype, device)


def _tokenizer_limit(tokenizer: Any) -> int | None:
    """Return the limit of the tokenizer's configuration, or None. transformers uses a huge number for "no limit"."""
    limit = int(tokenizer.model_max_length)
    return limit if limit < 10**9 else None
