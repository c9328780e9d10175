"""Chooses the files of a repository that a server needs. Refuses an incomplete repository before the download."""

import fnmatch
import json
import re
from collections.abc import Callable, Collection
from pathlib import PurePosixPath

from inference_server.weights.fetching.listing import Listing, RemoteFile
from tailrace_shared.config_errors import ConfigurationError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SMALL_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken")
# Folders and files that are not needed: the same weights in other layouts, model cards, licences and training states.
_IGNORED = ("consolidated*", "original/*", "onnx/*", "openvino/*", "README*", "LICENSE*", "*trainer_state.json")
# Files from which a tokenizer can be made.
_TOKENIZERS = ("tokenizer.json", "*.model", "*.spm", "*vocab*.json", "*vocab*.txt", "*.tiktoken", "tekken.json")
_SPLIT_GGUF = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_PICKLED = (".bin", ".pt", ".pth", ".msgpack", ".h5")
_NAMES_SHOWN = 6


def refuse_split(name: str) -> None:
    """Check that a GGUF file is not one of several parts.

    Raises:
        ConfigurationError: Its name is that of a part.
    """
    match = _SPLIT_GGUF.search(name)
    if match and int(match[1]) > 1:
        raise ConfigurationError(
            f"{name} is one of {int(match[1])} parts of a split GGUF file: join them with "
            "llama.cpp's `llama-gguf-split --merge`, or choose a file in one part"
        )


def select_file(name: str, listing: Listing, path: str) -> RemoteFile:
    """Return the entry of one GGUF file.

    Raises:
        ConfigurationError: The repository lacks it, or it is a part of a split file.
    """
    refuse_split(path)
    file = listing.file(path)
    if file is None:
        others = [each.path for each in listing.files if each.path.endswith(".gguf")]
        raise ConfigurationError(f"{name} has no file {path!r}{_offer(others, 'its GGUF files are')}")
    return file


def select(name: str, listing: Listing, read_index: Callable[[RemoteFile], str]) -> list[RemoteFile]:
    """Return the files of a model in transformers' format.

    Args:
        name: The repository's id, for messages.
        listing: All files of the repository.
        read_index: Returns the text of the index of a model whose weights are in several files.

    Raises:
        ConfigurationError: The repository has no model in this format, or lacks an essential file. The message explains
            the consequence.
    """
    small = [file for file in listing.files if _is_any_of(file.path, _SMALL_FILES)]
    small = [file for file in small if not _is_any_of(file.path, _IGNORED)]
    weights = _weights(name, listing, read_index)
    if not listing.file(CONFIG):
        raise ConfigurationError(
            f"{name} has no {CONFIG}, so its architecture is not known: it is not a model for transformers"
        )
    if not has_tokenizer([file.path for file in small]):
        raise ConfigurationError(no_tokenizer(name))
    return [*small, *weights]


def has_tokenizer(paths: Collection[str]) -> bool:
    """Return True if a tokenizer can be made from one of the files. Paths are relative to the model's folder."""
    return any(_is_any_of(path, _TOKENIZERS) for path in paths if "/" not in path)


def no_tokenizer(name: str) -> str:
    """Return the error message for a model without a tokenizer."""
    return (
        f"{name} has no tokenizer (tokenizer.json or tokenizer.model), so text cannot be converted to tokens: "
        "point the source at a folder with its files and those of its base model's tokenizer"
    )


def _weights(name: str, listing: Listing, read_index: Callable[[RemoteFile], str]) -> list[RemoteFile]:
    """Return the files with weights: model.safetensors, or those of the index; else every safetensors file.

    For sentence-transformers, the weights of its modules are added.
    """
    tensors = [file for file in listing.files if file.path.endswith(".safetensors")]
    tensors = [file for file in tensors if not _is_any_of(file.path, _IGNORED)]
    # Modules of sentence-transformers, which have separate folders.
    modules = [file for file in tensors if "/" in file.path] if listing.file("modules.json") else []
    top = [file for file in tensors if "/" not in file.path]
    whole, index = listing.file(WEIGHTS), listing.file(INDEX)
    if whole is not None:
        return [whole, *modules]
    if index is not None:
        return [*_indexed(name, listing, read_index(index)), *modules]
    if not top:
        _refuse_other_formats(name, listing)
    return [*top, *modules]


def _indexed(name: str, listing: Listing, text: str) -> list[RemoteFile]:
    found = []
    for path in indexed_files(text):
        file = listing.file(path)
        if file is None:
            raise ConfigurationError(f"{name} is incomplete on the hub: it lacks {path}, which {INDEX} lists")
        found.append(file)
    return found


def indexed_files(text: str) -> list[str]:
    """Return the files that an index names. Raises ValueError if it is damaged."""
    try:
        return sorted(set(json.loads(text)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} has no weight_map") from error


def _refuse_other_formats(name: str, listing: Listing) -> None:
    paths = [file.path for file in listing.files]
    if gguf := [path for path in paths if path.endswith(".gguf")]:
        whole = [path for path in gguf if not _SPLIT_GGUF.search(path)] or gguf
        example = f'source = {{ hub = "{name}", file = "{whole[0]}" }}'
        raise ConfigurationError(
            f"{name} has GGUF files instead of safetensors: choose one, as in {name}:{whole[0]} or, in a catalog, "
            f"{example}{_offer(gguf, 'its files are')}"
        )
    if "adapter_config.json" in paths:
        raise ConfigurationError(
            f"{name} is a LoRA adapter, not a model: name it under [models.adapters] of its base model"
        )
    raise ConfigurationError(f"{name} {no_weights(paths)}: choose a repository with safetensors or GGUF files")


def no_weights(paths: Collection[str]) -> str:
    """Return the clause about a model without safetensors files. `paths`: the files that it has."""
    other = sorted(path for path in paths if PurePosixPath(path).suffix in _PICKLED)
    reason = f"; its weights are in {other[0]}, a format that can run code when it is read" if other else ""
    return f"has no safetensors files (model.safetensors{reason})"


def _offer(names: list[str], introduction: str) -> str:
    """Return the end of a sentence that lists names, shortened after a few."""
    if not names:
        return ""
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f" ({introduction} {shown}{' and others' if len(names) > _NAMES_SHOWN else ''})"


def _is_any_of(path: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
