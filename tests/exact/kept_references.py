"""Keeps the replies of `generate` on disk. They take minutes, and do not depend on Tailrace's own computation.

So a second run with another instruction set, or the second process of a run, reads them.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from inference_server.precision import Precision
from inference_server.settings.server import Settings
from inference_server.weights.download import local_folder
from tests.exact.reference import NUM_TOKENS, Reference, TokenIds, default_entry, generate


def kept_references(folder: Path) -> Callable[[Precision, list[TokenIds]], list[Reference]]:
    """Return `generate` with its results kept in `folder`. Another process that needs the same ones waits for them."""

    def read_or_generate(precision: Precision, prompts: list[TokenIds]) -> list[Reference]:
        path = folder / f"{_name(precision, prompts)}.pt"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _write(path, generate(precision, prompts))
        return _read(path)

    return read_or_generate


def _name(precision: Precision, prompts: list[TokenIds]) -> str:
    """Return a name that changes with everything that changes the replies' bits."""
    weights = local_folder(default_entry(precision).weights, Settings().cache_dir)
    parts = [weights.name, torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability()]
    described = repr([*parts, torch.get_num_threads(), NUM_TOKENS, prompts])
    return f"{precision}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


def _write(path: Path, references: list[Reference]) -> None:
    temporary = path.with_suffix(".part")
    torch.save([(one.token_ids, one.likeliest, one.logits) for one in references], temporary)
    os.replace(temporary, path)


def _read(path: Path) -> list[Reference]:
    return [Reference(*fields) for fields in torch.load(path, weights_only=True)]
