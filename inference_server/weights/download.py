"""Provides weights from the hub, a package or a GGUF file in a folder that transformers can load.

Slow phases are logged. No code from the hub is run, and only safetensors and GGUF files are read.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from inference_server.errors import first_line
from inference_server.progress import progress
from inference_server.weights.atomic_folder import atomic_directory, made_once
from inference_server.weights.fetching.gguf_file import whole_header
from inference_server.weights.fetching.hub import HubModel
from inference_server.weights.loading_lock import LOADING
from inference_server.weights.source import Weights
from inference_server.weights.store import fetch, stored
from tailrace_shared import garbage
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)


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


def local_folder(weights: Weights, cache_dir: Path) -> Path:
    """Return a folder that transformers can load, after a download or a conversion if one is needed.

    Args:
        weights: The source.
        cache_dir: Folder for downloaded packages and converted models. The hub has its own cache.

    Raises:
        ConfigurationError: The weights are not available; the message contains the remedy.
    """
    with naming_source(weights):
        path = fetch(weights, cache_dir)
        return _convert_gguf(path, cache_dir) if path.suffix == ".gguf" else path


def config_folder(weights: Weights, cache_dir: Path, *, may_fetch: bool) -> Path | None:
    """Return a folder with the model's configuration. Of a model on the hub, only that file is downloaded.

    Args:
        weights: The source.
        cache_dir: Folder for downloaded packages and converted models.
        may_fetch: False returns None if a download or a conversion would be needed.

    Raises:
        ConfigurationError: For the same reasons as `local_folder`.
    """
    if weights.hub is not None and weights.file is None:
        model = HubModel(weights, cache_dir)
        return model.fetch_config() if may_fetch else model.cached.stored_config()
    if may_fetch:
        return local_folder(weights, cache_dir)
    path = stored(weights, cache_dir)
    folder = _converted_folder(path, cache_dir) if path and path.suffix == ".gguf" and path.is_file() else path
    return folder if folder and folder.is_dir() else None


def _convert_gguf(path: Path, cache_dir: Path) -> Path:
    """Return a folder with the file's weights as safetensors; it is made once.

    transformers converts it. Reading the result takes a tenth of the time.
    """
    folder = _converted_folder(path, cache_dir)
    if folder.is_dir():
        return folder
    with made_once(folder, f"converting {path.name}"):
        if not folder.is_dir():
            _write_converted(path, folder)
    return folder


def _write_converted(path: Path, folder: Path) -> None:
    with (
        atomic_directory(folder, num_bytes=_converted_bytes(path)) as unfinished,
        progress(f"converting {path.name} (once; the result stays in {folder.parent})"),
        LOADING,
        garbage.paused(),
    ):
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        from inference_server.weights.quick_gguf import quick_conversion

        with quick_conversion():
            source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
            tokenizer = AutoTokenizer.from_pretrained(**source)
            # float32 represents a dequantised weight exactly. A later load rounds it once, to the precision in use.
            model = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
        tokenizer.save_pretrained(unfinished)
        model.save_pretrained(unfinished)


def _converted_folder(path: Path, cache_dir: Path) -> Path:
    """Return the folder of a GGUF file's converted weights, which may not exist yet."""
    return cache_dir / "converted" / f"{path.stem}-{_fingerprint(path)}"


def _converted_bytes(path: Path) -> int:
    """Return the size of a GGUF file's weights in float32, in bytes.

    Raises:
        ConfigurationError: The file is cut or is not a GGUF file.
    """
    return 4 * sum(tensor.num_weights for tensor in whole_header(path).tensors)


def _fingerprint(path: Path) -> str:
    """Return a digest of the file and of transformers' version, which determines the result's format."""
    status = path.stat()
    version = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {transformers.__version__}"
    return hashlib.sha256(version.encode()).hexdigest()[:16]
