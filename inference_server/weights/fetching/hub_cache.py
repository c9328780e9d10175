"""The folder of one repository in the hub's cache. Other programs share the cache, so its layout is the hub client's.

The folder `blobs` contains the files, named by their digests. Each folder in `snapshots` contains the files of a
commit, as links. Each file in `refs` contains the commit of a branch or tag. This server also records which files
matched the hub's digests.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from inference_server.weights.disk.space import sized
from inference_server.weights.fetching.integrity import folder_faults, has_all_small_files
from inference_server.weights.fetching.listing import Listing, RemoteFile, read_record, replace_text, write_record
from inference_server.weights.fetching.resumable import PARTIAL, partial_path
from inference_server.weights.fetching.selection import CONFIG, select, select_file
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

_COMMIT = re.compile(r"[0-9a-f]{40}")
# A file that has not changed for this time belongs to a killed process.
_ABANDONED_SECONDS = 3600.0
# This server's interrupted downloads are kept for the next attempt, but only for this time.
_PARTIAL_SECONDS = 30 * 86400.0
_COPIED_BYTES = 100 << 20  # files up to this size are copied if links are impossible


def hub_cache() -> Path:
    """Return the folder of the hub's cache (HF_HUB_CACHE, or `hub` in HF_HOME)."""
    return Path(constants.HF_HUB_CACHE)


class CachedModel:
    """A model in the hub's cache: a repository in transformers' format, or one GGUF file. Sends no request."""

    def __init__(self, weights: Weights, cache_dir: Path) -> None:
        """Describe the model without accessing it.

        Args:
            weights: A source with `hub`.
            cache_dir: The server's cache folder, where the files' digests are recorded.
        """
        assert weights.hub is not None
        self._weights = weights
        self._revision = weights.revision or constants.DEFAULT_REVISION
        folder = repo_folder_name(repo_id=weights.hub, repo_type="model")
        self._folder = hub_cache() / folder
        self.blobs = self._folder / "blobs"
        self._records = cache_dir / "hub" / folder
        self.lock = hub_cache() / ".locks" / folder / "tailrace.lock"

    def stored(self) -> Path | None:
        """Return the model's folder or GGUF file if it is complete in the cache; otherwise None."""
        commit = self._stored_commit()
        return None if commit is None or self._missing(commit) else self.path(commit)

    def stored_config(self) -> Path | None:
        """Return the folder with the stored configuration, or None. The folder may lack the weights."""
        commit = self._stored_commit()
        return self.snapshot(commit) if commit and (self.snapshot(commit) / CONFIG).is_file() else None

    def _stored_commit(self) -> str | None:
        """Return the commit that the cache has for the revision, or None."""
        if _COMMIT.fullmatch(self._revision):
            return self._revision if self.snapshot(self._revision).is_dir() else None
        try:
            commit = (self._folder / "refs" / self._revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return commit if _COMMIT.fullmatch(commit) and self.snapshot(commit).is_dir() else None

    def _missing(self, commit: str) -> list[str]:
        """Return a clause for each fault of a stored commit."""
        snapshot, listing = self.snapshot(commit), read_record(self._record(commit))
        if listing is None:
            return self._structural_faults(snapshot)
        try:
            wanted = self.wanted(listing, lambda file: (snapshot / file.path).read_text(encoding="utf-8"))
        except (ConfigurationError, OSError, ValueError) as error:
            return [str(error)]
        if CONFIG in listing.checked:  # an earlier version of this server may have downloaded fewer small files
            wanted = [file for file in wanted if file.path in listing.checked or _has_weights(file)]
        return [fault for file in wanted if (fault := _fault(snapshot / file.path, file))]

    def _structural_faults(self, snapshot: Path) -> list[str]:
        """Return the faults that are visible without the hub's listing, for files that another program downloaded."""
        if self._weights.file is not None:
            return [] if (snapshot / self._weights.file).is_file() else [f"{self._weights.file} is missing"]
        faults = list(folder_faults(snapshot))
        return faults if faults or has_all_small_files(snapshot) else ["its tokenizer is missing"]

    def stored_clause(self) -> str:
        """Return the model's state in the local cache, as the predicate of a sentence about the model."""
        commit = self._stored_commit()
        faults = self._missing(commit) if commit else []
        if not faults:
            present = sum(path.stat().st_size for path in self.blobs.glob("*"))
            if commit:
                return "is complete in the local cache"
            interrupted = f"is incomplete in the local cache (its download was interrupted after {sized(present)})"
            return interrupted if present else "is not in the local cache"
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        return f"is incomplete in the local cache ({faults[0]}{more})"

    def wanted(self, listing: Listing, read_index: Callable[[RemoteFile], str]) -> list[RemoteFile]:
        """Return the files of a commit that the model needs. See `selection.select`."""
        assert self._weights.hub is not None
        if self._weights.file is not None:
            return [select_file(self._weights.hub, listing, self._weights.file)]
        return select(self._weights.hub, listing, read_index)

    def checked(self, commit: str) -> frozenset[str]:
        """Return the paths of the commit's files that matched the hub's digests."""
        record = read_record(self._record(commit))
        return record.checked if record else frozenset()

    def keep_record(self, listing: Listing, checked: Sequence[RemoteFile]) -> None:
        """Record a commit's listing, and that the files of `checked` have the hub's digests on disk."""
        path = self._record(listing.commit)
        paths = {file.path for file in checked} | self.checked(listing.commit)
        write_record(path, replace(listing, checked=frozenset(paths)))

    def name_commit(self, commit: str) -> None:
        """Record the commit as that of the source's branch or tag. Does nothing if the source names the commit."""
        if self._revision == commit:
            return
        reference = self._folder / "refs" / self._revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        replace_text(reference, commit)

    def remove_abandoned(self, wanted: Sequence[RemoteFile]) -> None:
        """Remove old unfinished files of killed processes, except those that a download of `wanted` continues."""
        ours = {partial_path(self.blob(file)).name for file in wanted}
        for path in self.blobs.glob("*.incomplete"):
            with contextlib.suppress(OSError):
                age = time.time() - path.stat().st_mtime
                if path.name not in ours and age > (
                    _PARTIAL_SECONDS if path.name.endswith(PARTIAL) else _ABANDONED_SECONDS
                ):
                    path.unlink()

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit's files."""
        return self._folder / "snapshots" / commit

    def path(self, commit: str) -> Path:
        """Return the path of a commit's model: its folder, or the GGUF file."""
        return self.snapshot(commit) / (self._weights.file or "")

    def blob(self, file: RemoteFile) -> Path:
        """Return the path of a file's content in `blobs`."""
        return self.blobs / file.etag

    def _record(self, commit: str) -> Path:
        return self._records / f"{commit}.json"


def _has_weights(file: RemoteFile) -> bool:
    return file.path.endswith((".safetensors", ".gguf"))


def _fault(path: Path, file: RemoteFile) -> str | None:
    """Return a clause if a file is missing or its size differs from the hub's."""
    try:
        num_bytes = path.stat().st_size
    except OSError:
        return f"{file.path} is missing"
    return None if num_bytes == file.num_bytes else f"{file.path} has {sized(num_bytes)} of {sized(file.num_bytes)}"


def link(blob: Path, pointer: Path) -> None:
    """Create the snapshot's file: a link to the blob.

    If links are impossible, a small blob is copied, and a large one is moved.
    """
    if pointer.is_file():
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)  # removes a dangling link
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        # A small blob stays in place, because several small files may have the same content.
        if blob.stat().st_size <= _COPIED_BYTES:
            shutil.copyfile(blob, pointer)
        else:
            blob.replace(pointer)


def remove_files(*paths: Path) -> None:
    """Remove files, ignoring those that do not exist."""
    for path in paths:
        path.unlink(missing_ok=True)
