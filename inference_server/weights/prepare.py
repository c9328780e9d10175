"""Weights to a model that can run: loaded, fused and packed, or as an earlier start has packed it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference_server.attention.kv_cache import CPU_BLOCK_SIZE
from inference_server.cpu.decoder_weights import extract_weights
from inference_server.cpu.forward import supports_all_passes
from inference_server.cpu.fused_modules import fuse
from inference_server.cpu.linear.kernel_linear import KernelLinear
from inference_server.precision import Precision, cache_dtype
from inference_server.serving.catalog import Weights
from inference_server.settings import Settings
from inference_server.weights import packed_cache as packed
from inference_server.weights.loader import load_description, load_model, local_folder, progress
from inference_server.weights.packed_cache import ModelInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    model: Any  # what ModelRunner takes
    tokenizer: Any  # of transformers
    facts: ModelInfo
    num_bytes: int  # of the weights


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of a model that another engine loads."""

    folder: Path
    tokenizer: Any  # of transformers
    facts: ModelInfo


def describe(weights: Weights, settings: Settings) -> Described:
    """Everything but the weights. Raises what load_model raises."""
    folder, tokenizer, config, generation_config = load_description(weights, settings.cache_dir)
    return Described(folder, tokenizer, _facts(config, generation_config))


def prepare(weights: Weights, precision: Precision, device: torch.device, settings: Settings) -> Prepared:
    """`precision`: the one in force. Raises what load_model raises."""
    if device.type != "cpu":
        return _load(weights, precision, device, settings)
    source = local_folder(weights, settings.cache_dir)
    folder = None
    if source.is_dir():  # else loading says what is wrong with it
        folder = packed.packed_folder(settings.cache_dir, source, precision, batch_invariant=settings.batch_invariant)
    if folder is not None and folder.is_dir():
        try:
            with progress(f"reading {weights}, packed as {precision}"):
                decoder, facts, tokenizer = packed.read(folder)
            return Prepared(decoder, tokenizer, facts, decoder.num_bytes)
        except ValueError as reason:
            logger.info("packing %s anew: %s", weights, reason)
    return _packed(_load(weights, precision, device, settings), weights, precision, settings, folder)


def _load(weights: Weights, precision: Precision, device: torch.device, settings: Settings) -> Prepared:
    loaded = load_model(
        weights, precision, device=device, cache_dir=settings.cache_dir, int8_threshold=settings.int8_threshold
    )
    model = loaded.model
    facts = _facts(model.config, model.generation_config)
    return Prepared(model, loaded.tokenizer, facts, model.get_memory_footprint())


def _packed(
    loaded: Prepared, weights: Weights, precision: Precision, settings: Settings, folder: Path | None
) -> Prepared:
    """For a CPU: with every layer replaced that has a faster equal; kept in `folder` if all of the model has."""
    model = loaded.model
    with progress(f"packing {weights} as {precision}"):
        fuse(model, precision, batch_invariant=settings.batch_invariant)
        try:
            decoder = extract_weights(model)
        except ValueError:  # the runner says why
            decoder = None
        if decoder is not None and supports_all_passes(decoder, CPU_BLOCK_SIZE, cache_dtype(precision)):
            if folder is not None:
                packed.write(folder, decoder, loaded.facts, loaded.tokenizer)
            return Prepared(decoder, loaded.tokenizer, loaded.facts, decoder.num_bytes)
    kernels_bytes = sum(module.num_bytes for module in model.modules() if isinstance(module, KernelLinear))
    return Prepared(model, loaded.tokenizer, loaded.facts, model.get_memory_footprint() + kernels_bytes)


def _facts(model_config: Any, generation_config: Any) -> ModelInfo:
    config = model_config.get_text_config()
    configured = generation_config.eos_token_id
    end_ids = configured if isinstance(configured, list) else [configured]
    return ModelInfo(
        model_type=model_config.model_type,
        max_tokens=_max_tokens(config),
        end_ids=[token for token in end_ids if token is not None],
    )


def _max_tokens(config: Any) -> int | None:
    """The model's own window.

    Rotary positions that change with the longest sequence of a call (longrope and dynamic scaling in transformers) are
    used up to their original length alone: beyond it, one sequence would change the others in its batch.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if parameters.get("rope_type") in ("longrope", "dynamic"):
            limits.append(parameters.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=None)
