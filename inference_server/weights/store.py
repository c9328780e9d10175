"""The models on this machine: gets them, lists them, and removes them. Imports neither torch nor transformers."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from inference_server.weights.source import Weights

# Where the bytes are: the hub's own cache, a model out of a Python package, or a form that this server made of a model.
Kind = Literal["hub", "package", "converted", "packed"]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model, or a form of one, in a cache folder.

    Attributes:
        name: Its name for `remove_stored`.
        kind: What it is; a packed or converted model is made again from its source when it is needed.
        num_bytes: Bytes on disk.
        path: Its folder.
        last_used: Time of its last use, in local time with the offset from UTC.
    """

    name: str
    kind: Kind
    num_bytes: int
    path: Path
    last_used: datetime


def fetch(weights: Weights, cache_dir: Path, *, refresh: bool = False) -> Path:
    """Return the folder or the file of a model; download what is missing, with lines of progress in the log.

    A complete model is not looked up on the network again. Every downloaded file is compared with the hub's digest.

    Args:
        weights: The source. A hub's GGUF file or a local one is returned as a file, everything else as a folder.
        cache_dir: The server's cache folder. Models of the hub are in the hub's own cache.
        refresh: True asks the hub whether the branch has a newer commit, as `tailrace pull` does.

    Raises:
        ConfigurationError: The model is not available, damaged or incomplete; the message contains the remedy.
    """
    raise NotImplementedError


def stored_models(cache_dir: Path) -> list[StoredModel]:
    """Return the models in the hub's cache and in the server's cache folder, sorted by name."""
    raise NotImplementedError


def remove_stored(name: str, cache_dir: Path) -> int:
    """Remove a model, and the forms of it that this server has made. Returns the bytes that became free.

    Args:
        name: A name of `stored_models`.
        cache_dir: The server's cache folder.

    Raises:
        ConfigurationError: No stored model has this name, or it cannot be removed.
    """
    raise NotImplementedError
