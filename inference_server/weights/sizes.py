"""Reads a model's configuration and counts its weights, without loading them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference_server.gpu.memory import ModelSizes
from inference_server.linears.share import WEIGHT_FORMATS, QuantisedShare, quantised_share
from inference_server.precision import Precision
from inference_server.weights.download import config_folder, naming_source
from inference_server.weights.source import Weights


def read_config(weights: Weights, cache_dir: Path, *, may_fetch: bool) -> Any | None:
    """Return the transformers configuration of a model.

    Args:
        weights: The source of the weights. See `config_folder` for the files that are downloaded.
        cache_dir: Folder for downloaded packages and descriptions of GGUF files.
        may_fetch: True to download or convert missing files; False to return None instead.

    Raises:
        ConfigurationError: For the same reasons as `loader.load_model`.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with naming_source(weights):
        folder = config_folder(weights, cache_dir, may_fetch=may_fetch)
        if folder is None:
            return None
        config = AutoConfig.from_pretrained(folder)
        if not config.architectures:  # the description of a GGUF file names no class: transformers chooses it
            config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)]
        return config


def predicted_share(config: Any, precision: Precision, *, on_gpu: bool) -> QuantisedShare | None:
    """Return the share of a model's parameters that a precision quantises; None if it quantises none.

    Args:
        config: The transformers configuration.
        precision: The precision in use on the device.
        on_gpu: True for a GPU, where the output head stays in 16 bits.

    Raises:
        ValueError: transformers has no causal language model for this configuration.
    """
    from transformers import AutoModelForCausalLM

    if precision not in WEIGHT_FORMATS:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return quantised_share(model, precision, head_is_quantised=not on_gpu)


def model_sizes(config: Any) -> ModelSizes:
    """Return the sizes of the model that transformers makes from a configuration. No memory for weights is allocated.

    Raises:
        ValueError: transformers has no causal language model for this configuration.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    linear_weights = sum(linear.weight.numel() for linear in linears)
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelSizes(
        linear_weights=linear_weights,
        linear_rows=sum(linear.out_features for linear in linears),
        other_weights=sum(parameters.values()) - linear_weights,
        widest_linear=2 * max((linear.weight.numel() for linear in linears), default=0),
        hidden_size=text.hidden_size,
        intermediate_size=max([text.hidden_size, *(max(one.in_features, one.out_features) for one in linears)]),
        heads_width=heads * head_dim,
        kv_width=2 * (getattr(text, "num_key_value_heads", None) or heads) * head_dim,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
    )
