"""Turns weights into a model that can run: loaded, fused and packed, or read from the cache of an earlier start."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference_server import garbage
from inference_server.attention import paged as attention
from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.attention.rope import OWN_ROPE, RopeChoice, window
from inference_server.cpu.decoder_weights import DecoderWeights, decoder_share, extract_weights
from inference_server.cpu.forward import supports_all_passes
from inference_server.cpu.fused_modules import fuse
from inference_server.cpu.large_pages import return_free_memory
from inference_server.linears.share import QuantisedShare, quantised_share
from inference_server.lora.adapter import Adapter
from inference_server.precision import Precision, cache_dtype
from inference_server.progress import progress
from inference_server.settings.server import Settings
from inference_server.weights import packed_cache
from inference_server.weights.architectures import refuse_unsupported
from inference_server.weights.disk.atomic_folder import made_once
from inference_server.weights.download import local_path, naming_source
from inference_server.weights.gguf.description import describe_file, in_cache
from inference_server.weights.gguf.file import FileTensor
from inference_server.weights.gguf.places import Places
from inference_server.weights.gguf.plan import NoPlan, plan_path, read_plan, write_plan
from inference_server.weights.loader import load_description, load_model
from inference_server.weights.loading_lock import LOADING
from inference_server.weights.model_info import ModelInfo, sampling_defaults
from inference_server.weights.source import Weights
from inference_server.weights.tokenizers import read_tokenizer
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that this server runs itself.

    Attributes:
        model: A transformers model, or DecoderWeights; ModelRunner accepts both.
        tokenizer: The transformers tokenizer.
        info: Limits, end tokens and sampling defaults.
        num_bytes: Memory of the weights, in bytes.
        adapters: LoRA adapters, in the order of EngineKey.adapters.
        draft: The model that computes draft tokens; None: no such model.
    """

    model: Any
    tokenizer: Any
    info: ModelInfo
    num_bytes: int
    adapters: tuple[Adapter, ...] = ()
    draft: "PreparedModel | None" = None


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model whose weights an external engine (vLLM) loads.

    Attributes:
        folder: Folder with the weights, as transformers reads it.
        tokenizer: The transformers tokenizer.
        info: Limits, end tokens and sampling defaults.
    """

    folder: Path
    tokenizer: Any
    info: ModelInfo


def describe(weights: Weights, settings: Settings) -> ModelDescription:
    """Return the model's folder, tokenizer and properties, without loading its weights.

    Raises:
        ConfigurationError: For the same reasons as `loader.load_model`.
    """
    folder, tokenizer, config, generation_config = load_description(weights, settings.cache_dir)
    return ModelDescription(folder, tokenizer, _model_info(config, generation_config))


def prepare(
    weights: Weights, precision: Precision, device: torch.device, settings: Settings, rope: RopeChoice = OWN_ROPE
) -> PreparedModel:
    """Return a model that is ready to run on `device`. On a CPU, its packed form or plan is stored in the cache folder.

    Args:
        weights: The source of the weights.
        precision: The precision in use on the device (see precision.resolve_precision).
        device: A CPU or a GPU.
        settings: The cache folder and the options that change packed weights.
        rope: The scaling of rotary positions.

    Raises:
        ConfigurationError: For the same reasons as `loader.load_model`.
    """
    if device.type != "cpu":
        return _load(weights, precision, device, settings, rope)
    source = local_path(weights, settings.cache_dir)
    if source.suffix == ".gguf":
        return _prepare_gguf(source, weights, precision, settings, rope)
    folder = None
    if source.is_dir():  # a missing folder makes the loading below fail, with a message
        folder = packed_cache.packed_folder(
            settings.cache_dir, source, precision, batch_invariant=settings.batch_invariant, rope=_variant(source, rope)
        )
    if folder is None:
        return _load_and_pack(weights, precision, device, settings, rope, None)
    if packed := _read_packed(folder, weights, precision):
        return packed
    with made_once(folder, f"packing {weights} as {precision}") as has_waited:
        if not has_waited:
            return _load_and_pack(weights, precision, device, settings, rope, folder)
        if packed := _read_packed(folder, weights, precision):
            return packed
    # The other process could not store a packed form. All waiting processes now load the model at the same time.
    return _load_and_pack(weights, precision, device, settings, rope, folder)


def _read_packed(folder: Path, weights: Weights, precision: Precision) -> PreparedModel | None:
    """Return the packed model in `folder`, or None if it is missing or cannot be read."""
    if not folder.is_dir():
        return None
    try:
        with progress(f"reading {weights}, packed as {precision}"):
            decoder, info, tokenizer = packed_cache.read(folder)
        _log_share(decoder_share(decoder, precision), weights)
        return PreparedModel(decoder, tokenizer, info, decoder.num_bytes)
    except ValueError as reason:
        logger.info("packing %s again: %s", weights, reason)
        return None


def _load_and_pack(
    weights: Weights,
    precision: Precision,
    device: torch.device,
    settings: Settings,
    rope: RopeChoice,
    folder: Path | None,
) -> PreparedModel:
    """Load and pack a model on a CPU. Stores the packed form in `folder`, unless that is None."""
    loaded = _load(weights, precision, device, settings, rope)
    info, tokenizer = loaded.info, loaded.tokenizer

    def keep(decoder: DecoderWeights) -> DecoderWeights:
        if folder is not None:
            packed_cache.write(folder, decoder, info, tokenizer)
        return packed_cache.in_large_pages(decoder)

    packed = _pack(loaded, weights, precision, settings, keep)
    del loaded
    return_free_memory()
    return packed


def _variant(source: Path, rope: RopeChoice) -> str:
    """Return the name of the rotary frequencies of the model in `source`, "" for those of its configuration."""
    path = source / "config.json"
    return rope.variant(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ""


def _prepare_gguf(
    path: Path, weights: Weights, precision: Precision, settings: Settings, rope: RopeChoice
) -> PreparedModel:
    """Return a model whose packed weights are read from a GGUF file. Stores only the plan for the next start."""
    with naming_source(weights):
        folder = describe_file(path, settings.cache_dir)
        refuse_unsupported(folder)
        variant = _variant(folder, rope)
        plan = plan_path(folder, precision, batch_invariant=settings.batch_invariant, rope=variant)
        if plan.is_file():
            try:
                with progress(f"reading {weights} as {precision}"):
                    planned = read_plan(plan, path)
                    tokenizer = read_tokenizer(folder)
                return_free_memory()
                _log_share(decoder_share(planned.decoder, precision), weights)
                return PreparedModel(planned.decoder, tokenizer, planned.info, planned.decoder.num_bytes)
            except ValueError as reason:
                logger.info("planning %s again: %s", weights, reason)
        from inference_server.weights.gguf.load import load_stored  # imports gguf

        places = Places()
        with progress(f"loading {weights} as {precision}"), LOADING, garbage.paused():
            attention.register()
            model, filler = load_stored(path, folder, precision, places, attention.NAME)
            rope.fix(model)
            tokenizer = read_tokenizer(folder)
    info = _model_info(model.config, model.generation_config)

    def keep(decoder: DecoderWeights) -> DecoderWeights:
        if filler is not None:
            _keep_plan(plan, settings.cache_dir, decoder, info, places, filler.unchanged())
        _log_share(decoder_share(decoder, precision), weights)
        return decoder

    return _pack(PreparedModel(model, tokenizer, info, 0), weights, precision, settings, keep)


def _keep_plan(
    plan: Path,
    cache_dir: Path,
    decoder: DecoderWeights,
    info: ModelInfo,
    places: Places,
    unchanged: Mapping[int, FileTensor],
) -> None:
    try:
        write_plan(in_cache(plan.parent, cache_dir) / plan.name, decoder, info, places, unchanged)
    except (OSError, NoPlan, ConfigurationError) as reason:
        logger.info("kept no plan for the next start: %s", reason)


def memory_bytes(model: Any) -> int:
    """Return the memory of a transformers model in bytes, including packed linear layers.

    The weights of packed layers are not torch parameters, so `get_memory_footprint` does not count them.
    """
    packed_bytes = sum(getattr(module, "num_bytes", 0) for module in model.modules())
    return int(model.get_memory_footprint()) + packed_bytes


def _load(
    weights: Weights, precision: Precision, device: torch.device, settings: Settings, rope: RopeChoice
) -> PreparedModel:
    loaded = load_model(
        weights,
        precision,
        device=device,
        cache_dir=settings.cache_dir,
        int8_threshold=settings.int8_threshold,
        rope=rope,
    )
    model = loaded.model
    info = _model_info(model.config, model.generation_config)
    _log_share(quantised_share(model, precision, head_is_quantised=device.type == "cpu"), weights)
    return PreparedModel(model, loaded.tokenizer, info, model.get_memory_footprint())


def _log_share(share: QuantisedShare | None, weights: Weights) -> None:
    """Log how many of a model's parameters are quantised, and name layers that are not. Logs nothing for None."""
    if share is not None:
        logger.info("%s: %s", weights, share)
        if share.warning:
            logger.warning("%s: %s", weights, share.warning)


def _pack(
    loaded: PreparedModel,
    weights: Weights,
    precision: Precision,
    settings: Settings,
    keep: Callable[[DecoderWeights], DecoderWeights],
) -> PreparedModel:
    """Replace the layers that have a CPU kernel.

    If kernel programs compute every forward pass, `keep` stores the packed decoder and returns the decoder to use.
    """
    model = loaded.model
    with progress(f"packing {weights} as {precision}"):
        fuse(model, precision, batch_invariant=settings.batch_invariant)
        try:
            decoder = extract_weights(model)
        except ValueError:  # the runner later logs the reason
            decoder = None
        if decoder is not None and supports_all_passes(decoder, BLOCK_SIZE, cache_dtype(precision)):
            decoder = keep(decoder)
            return PreparedModel(decoder, loaded.tokenizer, loaded.info, decoder.num_bytes)
    return PreparedModel(model, loaded.tokenizer, loaded.info, memory_bytes(model))


def _model_info(model_config: Any, generation_config: Any) -> ModelInfo:
    config = model_config.get_text_config()
    configured = generation_config.eos_token_id
    end_ids = configured if isinstance(configured, list) else [configured]
    return ModelInfo(
        model_type=model_config.model_type,
        max_tokens=window(config),
        end_ids=[token for token in end_ids if token is not None],
        sampling=sampling_defaults(generation_config),
    )
