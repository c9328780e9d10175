"""Groups catalog entries by the engine that they share, and limits their lengths to the model's window."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from inference_server.engine.spec import EngineKey
from inference_server.precision import resolve_precision
from inference_server.serving.catalog import CatalogEntry


def group_entries(entries: Iterable[CatalogEntry], device: torch.device) -> dict[EngineKey, list[CatalogEntry]]:
    """Return the entries of each engine that generates text.

    They have the same weights, precision on `device`, engine arguments and speculation. Embedding models are left out. The
    engine has the LoRA adapters of all its entries.
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


def _longest(entries: Iterable[CatalogEntry]) -> int:
    return max(window(entry, None) for entry in entries)


def _adapters(entries: Iterable[CatalogEntry]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(folder for entry in entries for folder in entry.adapters.values()))


def window(entry: CatalogEntry, max_tokens: int | None) -> int:
    """Return the longest prompt and reply together, in tokens: the sum of the entry's limits, or a lower limit on both.

    Args:
        entry: The entry.
        max_tokens: The model's window in tokens; None: no limit.
    """
    wanted = entry.context_length + entry.sequence_length
    return min(wanted, max_tokens or wanted, entry.window_limit or wanted)
