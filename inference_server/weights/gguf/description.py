"""Caches the configuration and the tokenizer of a model in a GGUF file, as transformers saves them.

A folder in the cache belongs to one version of one file. It contains no weights, apart from the small tensors of plans
(plan.py). Container images contain the folders of the default models (serving/ahead_of_time.py).
"""

import glob
import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from inference_server import garbage, weights
from inference_server.cpu.large_pages import return_free_memory
from inference_server.progress import progress
from inference_server.weights.disk.atomic_folder import atomic_directory, made_once
from inference_server.weights.gguf.file import GgufFile
from inference_server.weights.loading_lock import LOADING

_FORMAT = 1  # increment when the folder's content changes


def prepared_folder() -> Path:
    """Return this package's folder of prepared descriptions, which are in its subfolder `gguf`. It may be missing."""
    return Path(weights.__path__[0]) / "prepared"


def description_folder(path: Path, cache_dir: Path) -> Path:
    """Return the folder that describes a GGUF file, which may not exist yet.

    A folder in the cache has priority over a prepared one, because it may contain further plans.
    """
    import transformers

    status = path.stat()
    version = f"{_FORMAT} {path.resolve()} {status.st_size} {status.st_mtime_ns} {transformers.__version__}"
    name = f"{path.stem}-{hashlib.sha256(version.encode()).hexdigest()[:16]}"
    folder, prepared = (parent / "gguf" / name for parent in (cache_dir, prepared_folder()))
    return prepared if prepared.is_dir() and not folder.is_dir() else folder


def in_cache(folder: Path, cache_dir: Path) -> Path:
    """Return the cache's folder for the description in `folder`, so that a plan can be added. Copies a prepared folder.

    Raises:
        ConfigurationError: The cache cannot be written.
    """
    own = cache_dir / "gguf" / folder.name
    if folder != own and not own.is_dir():
        with atomic_directory(own) as unfinished:
            shutil.copytree(folder, unfinished, dirs_exist_ok=True)
    return own


def describe_file(path: Path, cache_dir: Path) -> Path:
    """Return the folder that describes a GGUF file. Creates it if it does not exist.

    Raises:
        ConfigurationError: The file is damaged or not supported, or the cache cannot be written.
    """
    folder = description_folder(path, cache_dir)
    if folder.is_dir():
        return folder
    file = GgufFile(path)
    with made_once(folder, f"reading {path.name}"):
        if not folder.is_dir():
            _write_description(file, path, folder)
            garbage.collect()
            return_free_memory()
            _remove_converted(path, cache_dir)
    return folder


def _write_description(file: GgufFile, path: Path, folder: Path) -> None:
    with (
        atomic_directory(folder) as unfinished,
        progress(f"reading the configuration and the tokenizer of {path.name} (once)"),
        LOADING,
        garbage.paused(),
    ):
        from inference_server.weights.gguf.config import end_tokens, read_model_config
        from inference_server.weights.gguf.tokenizer import read_gguf_tokenizer

        config = read_model_config(file)
        config.save_pretrained(unfinished)
        _generation_config(config, end_tokens(file)).save_pretrained(unfinished)
        read_gguf_tokenizer(file).save_pretrained(unfinished)


def _generation_config(config: Any, end_ids: list[int]) -> Any:
    from transformers import GenerationConfig

    generation_config = GenerationConfig.from_model_config(config)
    if end_ids:
        generation_config.eos_token_id = end_ids if len(end_ids) > 1 else end_ids[0]
    return generation_config


def _remove_converted(path: Path, cache_dir: Path) -> None:
    """Remove the copies that earlier releases made of files with this name: float32 weights and packed forms.

    A copy that this release made (converted.py) has the name of a description, and stays.
    """
    name = re.compile(re.escape(path.stem) + "-[0-9a-f]{16}")
    for converted in (cache_dir / "converted").glob(f"{glob.escape(path.stem)}-*"):
        if not name.fullmatch(converted.name) or (cache_dir / "gguf" / converted.name).is_dir():
            continue
        place = hashlib.sha256(str(converted.resolve()).encode()).hexdigest()[:8]
        for packed in (cache_dir / "packed").glob(f"{place}-*"):
            shutil.rmtree(packed, ignore_errors=True)
        shutil.rmtree(converted, ignore_errors=True)
