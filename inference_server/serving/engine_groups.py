"""Groups catalog entries by the engine that they share, and limits their lengths to the model's window."""

import json
from collections.abc import Iterable

import torch

from inference_server.engine.spec import EngineKey
from inference_server.precision import resolve_precision
from inference_server.serving.catalog import CatalogEntry


def group_entries(entries: Iterable[CatalogEntry], device: torch.device) -> dict[EngineKey, list[CatalogEntry]]:
    """Return the entries of each engine that generates text.

    They have the same weights, precision on `device`, engine arguments and speculation. Embedding models are left out.
    """
    groups: dict[EngineKey, list[CatalogEntry]] = {}
    for entry in entries:
        if entry.task != "generation":
            continue
        arguments = json.dumps(dict(entry.vllm), sort_keys=True)
        precision = resolve_precision(entry.precision, device)
        key = EngineKey(entry.weights, precision, entry.engine, arguments, entry.speculation, entry.draft)
        groups.setdefault(key, []).append(entry)
    return groups


def window(entry: CatalogEntry, max_tokens: int | None) -> int:
    """Return the longest prompt and reply together, in tokens: the sum of the entry's limits, or the model's own window.

    Args:
        entry: The entry.
        max_tokens: The model's window in tokens; None: no limit.
    """
    wanted = entry.context_length + entry.sequence_length
    return min(wanted, max_tokens or wanted)
