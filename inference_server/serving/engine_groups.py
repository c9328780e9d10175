"""Groups catalog entries by the engine that they share, refuses unsupported models, and computes an entry's window."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from inference_server.engine.spec import EngineKey
from inference_server.errors import UnsupportedModel
from inference_server.precision import resolve_precision
from inference_server.serving.catalog import CatalogEntry
from inference_server.weights.architectures import refuse_unsupported
from inference_server.weights.download import config_folder
from tailrace_shared.config_errors import ConfigurationError


def group_entries(entries: Iterable[CatalogEntry], device: torch.device) -> dict[EngineKey, list[CatalogEntry]]:
    """Return the entries of each engine that generates text.

    The entries of one engine have the same weights, precision on `device`, engine arguments, RoPE scaling and
    speculation. The engine has the LoRA adapters of all its entries. Embedding models are left out.
    """
    groups: dict[EngineKey, list[CatalogEntry]] = {}
    for entry in entries:
        if entry.task != "generation":
            continue
        arguments = json.dumps(dict(entry.vllm), sort_keys=True)
        key = EngineKey(
            entry.weights,
            resolve_precision(entry.precision, device),
            entry.engine,
            arguments,
            rope=json.dumps(dict(entry.rope), sort_keys=True) if entry.rope else "",
            speculation=entry.speculation,
            draft=entry.draft,
        )
        groups.setdefault(key, []).append(entry)
    return {replace(key, adapters=_adapters(group), num_tokens=_longest(group)): group for key, group in groups.items()}


def refuse_unsupported_models(groups: Mapping[EngineKey, Sequence[CatalogEntry]], cache_dir: Path) -> None:
    """Check the configurations of models for the native engine, before any weights are downloaded or read.

    Args:
        groups: The entries of each engine.
        cache_dir: The server's cache folder, for configurations that are downloaded.

    Raises:
        ConfigurationError: A model's architecture is not supported, or its configuration is not available. The message
            names the model and the reason.
    """
    for key, group in groups.items():
        if key.engine != "tailrace":
            continue
        folder = config_folder(key.weights, cache_dir, may_fetch=False)
        if folder is None and key.weights.hub is not None and key.weights.file is None:
            folder = config_folder(key.weights, cache_dir, may_fetch=True)
        try:
            if folder is not None:
                refuse_unsupported(folder)
        except UnsupportedModel as reason:
            raise ConfigurationError(f"{group[0].name} ({key.weights}) cannot be served: {reason}") from reason
        except ValueError:  # a damaged file, for which loading the model raises the error
            continue


def _longest(entries: Iterable[CatalogEntry]) -> int:
    return max(window(entry, None) for entry in entries)


def _adapters(entries: Iterable[CatalogEntry]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(folder for entry in entries for folder in entry.adapters.values()))


def window(entry: CatalogEntry, max_tokens: int | None) -> int:
    """Return the longest prompt and reply together, in tokens.

    It is the sum of the entry's context length and sequence length, but at most `max_tokens` and the entry's window
    limit.

    Args:
        entry: The entry.
        max_tokens: The model's window in tokens; None: no limit.
    """
    wanted = entry.context_length + entry.sequence_length
    return min(wanted, max_tokens or wanted, entry.window_limit or wanted)
