"""Provides weights from the hub, a package or a GGUF file in a folder that transformers can load.

Slow phases are logged. No code from the hub is run, and only safetensors and GGUF files are read.
"""

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from inference_server.errors import first_line
from inference_server.progress import progress
from inference_server.weights.gguf.converted import convert_file
from inference_server.weights.gguf.description import describe_file, description_folder
from inference_server.weights.package_model import PackageModel
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_CONFIG = "config.json"
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
# Files that contain the same weights in another layout.
_IGNORED_HUB_FILES = ["consolidated*", "original/*"]


@contextmanager
def naming_source(weights: Weights) -> Iterator[None]:
    """Turn any exception of the `with` block into a ConfigurationError that names the weights."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # reading a damaged file may raise any exception
        logger.debug("loading %s failed", weights, exc_info=True)
        raise ConfigurationError(f"cannot load {weights}: {first_line(error)}") from error


def local_path(weights: Weights, cache_dir: Path) -> Path:
    """Return a folder that transformers can load, or a GGUF file, after a download if one is needed.

    Args:
        weights: The source.
        cache_dir: Folder for downloaded packages. The hub has its own cache.

    Raises:
        ConfigurationError: The weights are not available; the message contains the remedy.
    """
    with naming_source(weights):
        if weights.hub is not None:
            return _download_from_hub(weights.hub, weights.revision)
        path = weights.path
        if weights.package is not None:
            path = PackageModel(weights.package, str(weights.file), cache_dir).fetch()
        assert path is not None
        return path


def local_folder(weights: Weights, cache_dir: Path) -> Path:
    """Return a folder with the model's configuration and tokenizer. It has the weights too, unless they are a GGUF file.

    Args:
        weights: The source.
        cache_dir: Folder for downloaded packages and descriptions of GGUF files.

    Raises:
        ConfigurationError: The weights are not available or damaged; the message contains the remedy.
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
        return convert_file(path, cache_dir) if path.suffix == ".gguf" else path


def config_folder(weights: Weights, cache_dir: Path, *, may_fetch: bool) -> Path | None:
    """Return a folder with the model's configuration. Of a model on the hub, only that file is downloaded.

    Args:
        weights: The source.
        cache_dir: Folder for downloaded packages and descriptions of GGUF files.
        may_fetch: False returns None if a download would be needed, or a description of a GGUF file.

    Raises:
        ConfigurationError: For the same reasons as `local_folder`.
    """
    if weights.hub is not None:
        return _config_from_hub(weights.hub, weights.revision, may_fetch=may_fetch)
    if may_fetch:
        return local_folder(weights, cache_dir)
    path = weights.path
    if weights.package is not None:
        path = PackageModel(weights.package, str(weights.file), cache_dir).path
    assert path is not None
    folder = description_folder(path, cache_dir) if path.suffix == ".gguf" and path.is_file() else path
    return folder if folder.is_dir() else None


def _config_from_hub(hub_id: str, revision: str | None, *, may_fetch: bool) -> Path | None:
    if may_fetch:
        with _explaining_the_hub(hub_id, revision):
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[_CONFIG]))
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[_CONFIG], local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / _CONFIG).is_file() else None


def _download_from_hub(hub_id: str, revision: str | None) -> Path:
    with (
        _explaining_the_hub(hub_id, revision),
        progress(f"getting {hub_id} from the hub (once; it stays in the hub's cache)", every_seconds=10.0),
    ):
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_IGNORED_HUB_FILES
        )
    return Path(folder)


@contextmanager
def _explaining_the_hub(hub_id: str, revision: str | None) -> Iterator[None]:
    """Turn the exceptions of a download in the `with` block into a ConfigurationError with the remedy."""
    try:
        yield
    except GatedRepoError:
        raise ConfigurationError(
            f"{hub_id} is gated: accept its licence on the hub, then set HF_TOKEN to an access token of that account"
        ) from None
    except RevisionNotFoundError:
        raise ConfigurationError(f"{hub_id} has no revision {revision!r}: correct the catalog's source") from None
    except RepositoryNotFoundError:
        raise ConfigurationError(
            f"the hub has no model {hub_id}, or it is private: check the id, and set HF_TOKEN if it needs one"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if _is_untrusted(error):
            raise ConfigurationError(_untrusted(hub_id)) from None
        raise ConfigurationError(
            f"{hub_id} is not in the local cache and the hub was not reached: unset HF_HUB_OFFLINE or check the network, "
            "or point the catalog's source at a folder"
        ) from None
    except Exception as error:  # the HTTP client's exceptions have no common class, and they change between releases
        logger.debug("downloading %s failed", hub_id, exc_info=True)
        if _is_untrusted(error):
            raise ConfigurationError(_untrusted(hub_id)) from None
        raise ConfigurationError(f"downloading {hub_id} failed: {first_line(error)}") from None


def _is_untrusted(error: BaseException | None) -> bool:
    """Return True if a certificate that is not trusted is among the causes of `error`."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or _UNTRUSTED in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _untrusted(hub_id: str) -> str:
    return (
        f"downloading {hub_id} failed: the certificate of the hub, or of a proxy before it, is not trusted: set SSL_CERT_FILE "
        "to a file (PEM) with the certificate of the authority that signed it"
    )
