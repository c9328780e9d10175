"""Provides weights from the hub, a package or a GGUF file in a folder that transformers can load.

Slow phases are logged. No code from the hub is run, and only safetensors and GGUF files are read.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference_server.errors import first_line
from inference_server.weights.gguf.description import describe_file, description_folder
from inference_server.weights.source import Weights
from inference_server.weights.store import fetch, stored
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)


@contextmanager
def naming_source(weights: Weights) -> Iterator[None]:
    """Turn every exception of the `with` block that is not a ConfigurationError into one that names the weights."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # reading a damaged file may raise any exception
        logger.debug("loading %s failed", weights, exc_info=True)
        raise ConfigurationError(f"cannot load {weights}: {first_line(error)}") from error


def local_path(weights: Weights, cache_dir: Path) -> Path:
    """Return the folder or the GGUF file with the model's weights, after a download if one is needed.

    Args:
        weights: The source.
        cache_dir: Folder for downloaded packages. The hub has its own cache.

    Raises:
        ConfigurationError: The weights are not available; the message contains the remedy.
    """
    with naming_source(weights):
        return fetch(weights, cache_dir)


def local_folder(weights: Weights, cache_dir: Path) -> Path:
    """Return a folder with the model's configuration and tokenizer.

    It also contains the weights, unless the source is a GGUF file.

    Args:
        weights: The source.
        cache_dir: Folder for downloaded packages and descriptions of GGUF files.

    Raises:
        ConfigurationError: The weights are missing or damaged; the message contains the remedy.
    """
    with naming_source(weights):
        path = local_path(weights, cache_dir)
        return describe_file(path, cache_dir) if path.suffix == ".gguf" else path


def weights_folder(weights: Weights, cache_dir: Path) -> Path:
    """Return a folder with the model's configuration, tokenizer and weights. A GGUF file is converted to 16-bit weights.

    Arguments and errors are those of `local_folder`.
    """
    with naming_source(weights):
        path = local_path(weights, cache_dir)
        if path.suffix != ".gguf":
            return path
        from inference_server.weights.gguf.converted import convert_file  # imports gguf

        return convert_file(path, cache_dir)


def config_folder(weights: Weights, cache_dir: Path, *, may_fetch: bool) -> Path | None:
    """Return a folder with the model's configuration.

    Of a repository in transformers' format on the hub, only config.json is downloaded. Other sources are fetched whole.

    Args:
        weights: The source.
        cache_dir: Folder for downloaded packages and descriptions of GGUF files.
        may_fetch: False to return None if a download or a conversion would be needed.

    Raises:
        ConfigurationError: For the same reasons as `local_folder`.
    """
    if weights.hub is not None and weights.file is None:
        from inference_server.weights.fetching.hub import HubModel  # the hub's client takes time to import

        model = HubModel(weights, cache_dir)
        return model.fetch_config() if may_fetch else model.cached.stored_config()
    if may_fetch:
        return local_folder(weights, cache_dir)
    path = stored(weights, cache_dir)
    folder = description_folder(path, cache_dir) if path and path.suffix == ".gguf" and path.is_file() else path
    return folder if folder and folder.is_dir() else None
