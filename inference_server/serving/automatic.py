"""Chooses values that the catalog does not set: a model's task, and a precision and lengths that fit into memory."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from inference_server.attention.rope import scaled_window
from inference_server.kernels.isa import choice
from inference_server.machine import available_memory_bytes, memory_bytes
from inference_server.precision import Precision, resolve_precision
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.gpu_plan import free_bytes
from inference_server.settings.server import Settings
from inference_server.weights.architectures import is_encoder
from inference_server.weights.download import config_folder
from inference_server.weights.gguf.config import natural_precision
from inference_server.weights.shape import ModelShape, read_config_file, read_shape
from inference_server.weights.source import Weights
from inference_server.weights.store import fetch, stored

logger = logging.getLogger(__name__)

_GIB = 2**30
# Share of the free memory for weights and KV cache. The rest is for activations and for other programs.
_USABLE = 0.9
# Of the memory left after the weights, the largest share for the keys and values of one sequence of full length.
_ONE_SEQUENCE = 0.5
# Window of a model whose configuration states none, and the granularity of a window that is reduced to fit, in tokens.
_USUAL_WINDOW, _WINDOW_STEP = 4096, 256
# A precision fits into memory if there is space for the weights and a window of this many tokens.
_LEAST_WINDOW = 2048
_LONGEST_REPLY = 8192
# Embedding models whose float32 weights take at most this many bytes are kept in float32.
_SMALL_BYTES = _GIB
_INT4_BITS = 4


def complete(
    entries: Sequence[CatalogEntry], settings: Settings, device: torch.device, *, may_fetch: bool = True
) -> list[CatalogEntry]:
    """Return the entries with a value for every open property.

    Args:
        entries: The entries.
        settings: The server's settings.
        device: Device of the native engine.
        may_fetch: True to download a missing configuration. False leaves out the entries that need one.

    Raises:
        ConfigurationError: A configuration is missing or damaged; the message names the model.
    """
    if not any(entry.open_keys for entry in entries):
        return list(entries)
    free = _memory(device, is_constant=settings.deterministic)
    share = int(_USABLE * free / max(1, len({entry.weights for entry in entries if entry.task == "generation"})))
    completed = []
    for entry in entries:
        path = model_path(entry.weights, settings.cache_dir, may_fetch=may_fetch) if entry.open_keys else None
        if path is not None:
            completed.append(_chosen(entry, path, device, share))
        elif not entry.open_keys:
            completed.append(entry)
    return completed


def _memory(device: torch.device, *, is_constant: bool) -> int:
    """Return the memory into which the models must fit, in bytes.

    Args:
        device: Device of the models.
        is_constant: True for the whole memory instead of the free memory, so that other programs cannot change a reply.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory if is_constant else free_bytes(device)
    return memory_bytes() if is_constant else available_memory_bytes()


def model_path(weights: Weights, cache_dir: Path, *, may_fetch: bool) -> Path | None:
    """Return the GGUF file of a model, or a folder with its config.json.

    Args:
        weights: The source. From a hub repository in transformers' format, only the configuration is downloaded. Other
            sources are downloaded completely.
        cache_dir: The server's cache folder.
        may_fetch: If False, the result is None if a download would be needed.

    Raises:
        ConfigurationError: The source is not available.
    """
    if weights.path is not None:
        return weights.path
    if weights.hub is not None and weights.file is None:
        return config_folder(weights, cache_dir, may_fetch=may_fetch)
    return fetch(weights, cache_dir) if may_fetch else stored(weights, cache_dir)


def _chosen(entry: CatalogEntry, path: Path, device: torch.device, share: int) -> CatalogEntry:
    """Return an entry with a value for every open property.

    Args:
        entry: The entry.
        path: GGUF file of the model, or a folder with its configuration.
        device: Device of the model.
        share: Memory for the model's weights and KV cache, in bytes.
    """
    shape = read_shape(path)
    if "task" in entry.open_keys and path.is_dir() and is_encoder(read_config_file(path), path):
        entry = replace(entry, task="embedding", sequence_length=0, open_keys=entry.open_keys - {"sequence_length"})
    if "precision" in entry.open_keys:
        entry = replace(entry, precision=_precision(entry, path, shape, device, share))
    window = shape.max_tokens if shape is not None and shape.max_tokens else _USUAL_WINDOW
    window = scaled_window(entry.rope, window) if entry.rope else window
    window = min(window, entry.window_limit or window)
    if entry.task == "generation" and shape is not None:
        window = _fitting_window(window, shape, resolve_precision(entry.precision, device), device.type, share)
    is_limited = "context_length" in entry.open_keys and entry.task == "generation"
    chosen = replace(
        entry,
        context_length=window if "context_length" in entry.open_keys else entry.context_length,
        sequence_length=_longest_reply(window) if "sequence_length" in entry.open_keys else entry.sequence_length,
        window_limit=window if is_limited else entry.window_limit,
        open_keys=frozenset(),
    )
    logger.info(
        "%s: chosen for %.1f GiB of memory: %s, prompt and reply of up to %d tokens together",
        chosen.name,
        share / _GIB,
        chosen.precision,
        window,
    )
    return chosen


def _precision(
    entry: CatalogEntry, path: Path, shape: ModelShape | None, device: torch.device, share: int
) -> Precision:
    """Return the first suitable precision that fits into `share` bytes, else the one that needs the least memory.

    An embedding model gets float32 if it is small, else bfloat16.
    """
    if entry.task == "embedding":
        is_small = shape is not None and shape.weight_bytes("float32", device.type) <= _SMALL_BYTES
        return "float32" if is_small else "bfloat16"
    candidates = _candidates(path, shape, device, entry.engine == "vllm")
    if shape is None:
        return candidates[0]
    needs = {precision: _need(shape, resolve_precision(precision, device), device.type) for precision in candidates}
    return next(
        (precision for precision, need in needs.items() if need <= share), min(needs, key=lambda one: needs[one])
    )


def _need(shape: ModelShape, precision: Precision, device_type: str) -> int:
    """Return the memory in bytes for a model and a short window; on a CPU, at least the peak of its first loading."""
    window = min(_LEAST_WINDOW, shape.max_tokens or _LEAST_WINDOW)
    running = shape.weight_bytes(precision, device_type) + window * shape.token_bytes(precision)
    return running if device_type == "cuda" else max(running, shape.load_bytes(precision))


def _candidates(path: Path, shape: ModelShape | None, device: torch.device, is_vllm: bool) -> tuple[Precision, ...]:
    """Return the precisions that suit a model on a device, the best one first."""
    if is_vllm:
        return ("bfloat16",)
    if device.type == "cuda":
        return ("bfloat16", "bitsandbytes-int8")
    if choice.chosen() is None:  # without kernels, integer weights are multiplied in float32, which is slow
        return ("float16",)
    is_narrow = shape is not None and shape.quantized_bits == _INT4_BITS
    if is_narrow or path.suffix == ".gguf" and natural_precision(path) == "int4":
        return ("int4", "bitsandbytes-int8")
    # In int8, a token takes half as long as in 16 bits, and the perplexity differs by at most 1%.
    return ("bitsandbytes-int8", "int4")


def _longest_reply(window: int) -> int:
    return min(max(1, window // 2), _LONGEST_REPLY)


def _fitting_window(window: int, shape: ModelShape, precision: Precision, device_type: str, share: int) -> int:
    """Return the largest window, at most `window` tokens, with which one sequence leaves memory for others.

    The result is at least 256 tokens, or `window` if that is smaller, even if the memory is too small.
    """
    left = share - shape.weight_bytes(precision, device_type)
    tokens = int(_ONE_SEQUENCE * left / max(1, shape.token_bytes(precision)))
    if tokens >= window:
        return window
    return max(min(window, _WINDOW_STEP), tokens - tokens % _WINDOW_STEP)
