"""The models on this machine: gets them, lists them, and removes them. Imports neither torch nor transformers."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from inference_server.weights.fetching.integrity import folder_faults, lacks
from inference_server.weights.fetching.package_model import PackageModel
from inference_server.weights.fetching.selection import refuse_split
from inference_server.weights.fetching.transfer import Show
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

# Where the bytes are: the hub's own cache, a model out of a Python package, or a form that this server made of a model.
Kind = Literal["hub", "package", "converted", "packed"]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model, or a form of one, in a cache folder.

    Attributes:
        name: Its name for `remove_stored`. Forms of a model have the model's name.
        kind: What it is; a packed or converted form is made again from the model when it is needed.
        num_bytes: Bytes on disk.
        path: Its folder or file.
        last_used: Time of its last use, in local time with the offset from UTC.
    """

    name: str
    kind: Kind
    num_bytes: int
    path: Path
    last_used: datetime


def fetch(weights: Weights, cache_dir: Path, *, refresh: bool = False, show: Show | None = None) -> Path:
    """Return the folder or the file of a model; download what is missing.

    A complete model is not looked up on the network again. Every downloaded file is compared with the hub's digest.

    Args:
        weights: The source. A GGUF file is returned as a file, everything else as a folder.
        cache_dir: The server's cache folder. Models of the hub are in the hub's own cache.
        refresh: True asks the hub whether the branch has a newer commit, as `tailrace pull` does.
        show: Called twice a second with a line of progress, which replaces the one before. None: lines are logged.

    Raises:
        ConfigurationError: The model is not available, damaged or incomplete; the message contains the remedy.
    """
    if weights.hub is not None:
        from inference_server.weights.fetching.hub import HubModel  # the hub's client takes time to import

        model = HubModel(weights, cache_dir)
        if not refresh and (path := model.stored()):
            return path
        path = model.fetch(refresh=refresh, show=show)
        _report_lacks(weights, path)
        return path
    if weights.package is not None:
        return PackageModel(weights.package, str(weights.file), cache_dir).fetch()
    assert weights.path is not None
    _check(weights.path)
    return weights.path


def stored(weights: Weights, cache_dir: Path) -> Path | None:
    """Return what `fetch` returns if that needs no download, else None. Sends no request."""
    if weights.hub is not None:
        from inference_server.weights.fetching.hub import HubModel

        return HubModel(weights, cache_dir).stored()
    path = weights.path
    if weights.package is not None:
        path = PackageModel(weights.package, str(weights.file), cache_dir).path
    return path if path is not None and path.exists() else None


def _check(path: Path) -> None:
    """Check a local model. Raises ConfigurationError for a part of a split file, and for a file that is missing or cut."""
    if path.suffix == ".gguf":
        refuse_split(path.name)
    elif path.is_dir():
        faults = list(folder_faults(path))
        if faults:
            raise ConfigurationError(f"cannot load {path.name}: {'; '.join(faults)}: copy or download its files again")


def _report_lacks(weights: Weights, path: Path) -> None:
    if path.is_dir():
        for sentence in lacks(path):
            logger.warning("%s: %s", weights, sentence)
