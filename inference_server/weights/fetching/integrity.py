"""Checks that the files of a model on disk are complete, from their headers and sizes. Reads no weights."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from inference_server.weights.disk.space import sized
from inference_server.weights.fetching.selection import CONFIG, INDEX, WEIGHTS, has_tokenizer, indexed_files, no_weights

_HEADER_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format


def folder_faults(folder: Path) -> Iterator[str]:
    """Yield a clause for each fault of a model's folder: a missing, truncated or damaged file.

    The folders of sentence-transformers' modules are not checked.

    Args:
        folder: A folder in transformers' format.
    """
    try:
        if not isinstance(json.loads((folder / CONFIG).read_text(encoding="utf-8")), dict):
            yield f"{CONFIG} is damaged (it is not a JSON object)"
    except FileNotFoundError:
        yield f"{CONFIG} is missing"
    except (OSError, ValueError) as error:
        yield f"{CONFIG} is damaged ({error})"
    index = folder / INDEX
    if (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    elif not index.exists():
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if not names:
            yield f"it {no_weights([path.name for path in folder.iterdir()])}"
    else:
        try:
            names = indexed_files(index.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            yield f"{INDEX} is damaged ({error})"
            return
    for name in names:
        if fault := _safetensors_fault(folder / name):
            yield fault


def _safetensors_fault(path: Path) -> str | None:
    """Return a clause about the file's fault; None if the file has the size that its header specifies."""
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_HEADER_LENGTH.size)
            if len(start) < _HEADER_LENGTH.size:
                return f"{path.name} is truncated: it has {sized(num_bytes)}"
            (length,) = _HEADER_LENGTH.unpack(start)
            if start.startswith(
                b"version"
            ):  # read as a length, the pointer's first bytes, "version https://git-lfs…", exceed the limit
                return f"{path.name} is a pointer of Git LFS instead of the file: run `git lfs pull` in its folder"
            if length > _MAX_HEADER:
                return f"{path.name} is not a safetensors file"
            header = file.read(length)
        if len(header) < length:
            return f"{path.name} is truncated: it has {sized(num_bytes)}, less than its header"
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"{path.name} has a damaged header"
    expected = _HEADER_LENGTH.size + length + max(ends, default=0)
    if num_bytes < expected:
        return f"{path.name} is truncated: it has {sized(num_bytes)} of {sized(expected)}"
    return f"{path.name} is longer than its header specifies" if num_bytes > expected else None


def lacks(folder: Path) -> Iterator[str]:
    """Yield a clause about each missing file that a chat model usually has, with the consequence."""
    files = {path.name for path in folder.iterdir()}
    if "modules.json" in files:  # an embedding model does not need these files
        return
    if not _has_template(folder, files):
        yield (
            "it has no chat template, so only raw prompts work unless chat_template in the catalog names one: "
            "it is probably a base model, and a chat with it needs the variant whose name ends in -Instruct or -Chat"
        )
    if "generation_config.json" not in files:
        yield (
            "it has no generation_config.json, so replies end at the tokenizer's end token, and parameters that a request "
            "leaves out have this server's defaults"
        )


def has_all_small_files(folder: Path) -> bool:
    """Return True if the folder has all required files of a model except its weights."""
    return (folder / CONFIG).is_file() and has_tokenizer([path.name for path in folder.iterdir()])


def _has_template(folder: Path, files: set[str]) -> bool:
    if files & {"chat_template.jinja", "chat_template.json", "additional_chat_templates"}:
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return isinstance(config, dict) and bool(config.get("chat_template"))
    except (OSError, ValueError):
        return False
