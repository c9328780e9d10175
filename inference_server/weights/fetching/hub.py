"""Gets models from the Hugging Face hub into its own cache, in the layout of its client, which other programs share.

A commit's files become visible under the branch's name when all of them are complete and have the hub's digests. After
that, a start sends no request: a newer commit is fetched on demand only (`refresh`).
"""

import contextlib
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from inference_server.progress import progress
from inference_server.weights.fetching.disk_space import require_free, sized
from inference_server.weights.fetching.hub_errors import explaining_the_hub
from inference_server.weights.fetching.integrity import folder_faults, has_all_small_files
from inference_server.weights.fetching.listing import (
    Listing,
    RemoteFile,
    matches,
    read_record,
    replace_text,
    write_record,
)
from inference_server.weights.fetching.locks import exclusively
from inference_server.weights.fetching.resumable import PARTIAL, BlobDownload, Damaged, Stopped, partial_path
from inference_server.weights.fetching.selection import CONFIG, select, select_file
from inference_server.weights.fetching.transfer import Show, Transfer, reported
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 30.0  # of the request for the list of files
_MAX_THREADS = 4  # files that are downloaded at the same time
# The hub serves larger files through another protocol (Xet) alone, which its client implements.
_MAX_BYTES = 50_000_000_000
# A file of another process that is still written changes more often than this.
_ABANDONED_SECONDS = 3600.0
# An interrupted download of ours is kept for the next try, but not for ever.
_PARTIAL_SECONDS = 30 * 86400.0


def hub_cache() -> Path:
    """Return the folder of the hub's cache (HF_HUB_CACHE, or `hub` in HF_HOME)."""
    return Path(constants.HF_HUB_CACHE)


class HubModel:
    """A model on the hub: a repository in transformers' format, or a GGUF file of one."""

    def __init__(self, weights: Weights, cache_dir: Path) -> None:
        """Describe the model without accessing it.

        Args:
            weights: A source with `hub`.
            cache_dir: The server's cache folder, where the files' digests are recorded.

        Raises:
            ConfigurationError: The id is not one.
        """
        assert weights.hub is not None
        self.weights = weights
        self.name = weights.hub
        try:
            validate_repo_id(self.name)
        except ValueError as error:
            raise ConfigurationError(f"{self.name!r} is no id of a model on the hub: {error}") from None
        folder = repo_folder_name(repo_id=self.name, repo_type="model")
        self._folder = hub_cache() / folder
        self._lock = hub_cache() / ".locks" / folder / "tailrace.lock"
        self._records = cache_dir / "hub" / folder

    def stored(self) -> Path | None:
        """Return the folder, or the GGUF file, if it is complete in the cache. Sends no request."""
        commit = self._stored_commit()
        return None if commit is None or self._missing(commit) else self._path(commit)

    def stored_config(self) -> Path | None:
        """Return the folder with the stored configuration, or None. The folder may lack the weights."""
        commit = self._stored_commit()
        return self._snapshot(commit) if commit and (self._snapshot(commit) / CONFIG).is_file() else None

    def fetch_config(self) -> Path:
        """Return a folder with the configuration; download that file alone if it is not stored.

        Raises:
            ConfigurationError: For the same reasons as `fetch`.
        """
        folder = self.stored_config()
        if folder is not None:
            return folder
        with explaining_the_hub(self.name, self.weights.revision):
            return Path(hf_hub_download(self.name, CONFIG, revision=self.weights.revision)).parent

    def fetch(self, *, refresh: bool = False, show: Show | None = None) -> Path:
        """Return the folder, or the GGUF file; download what is missing.

        Args:
            refresh: True looks for a newer commit of the branch even if the model is complete.
            show: Called with lines of progress; None: they are logged.

        Raises:
            ConfigurationError: The model is not complete and cannot be downloaded; the message says what is missing.
        """
        if not refresh and (path := self.stored()):
            return path
        with exclusively(self._lock, f"downloading {self.weights}"):
            if not refresh and (path := self.stored()):
                return path
            with explaining_the_hub(self.name, self.weights.revision, stored=self._stored_clause()):
                listing = self._list()
                wanted = self._wanted(listing)
                self._download(listing.commit, wanted, show)
                self._keep_record(listing, wanted)
                self._name_commit(listing.commit)
            return self._path(listing.commit)

    def _stored_commit(self) -> str | None:
        """Return the commit that the cache has for the revision, or None."""
        revision = self.weights.revision or constants.DEFAULT_REVISION
        if _COMMIT.fullmatch(revision):
            return revision if self._snapshot(revision).is_dir() else None
        try:
            commit = (self._folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return commit if _COMMIT.fullmatch(commit) and self._snapshot(commit).is_dir() else None

    def _missing(self, commit: str) -> list[str]:
        """Return a clause for each fault of a stored commit."""
        snapshot, listing = self._snapshot(commit), read_record(self._record(commit))
        if listing is None:
            return self._structural_faults(snapshot)
        try:
            wanted = self._wanted(listing, lambda file: (snapshot / file.path).read_text(encoding="utf-8"))
        except (ConfigurationError, OSError, ValueError) as error:
            return [str(error)]
        return [fault for file in wanted if (fault := _fault(snapshot / file.path, file))]

    def _structural_faults(self, snapshot: Path) -> list[str]:
        """Return the faults that show without the hub's listing: for files that another program downloaded."""
        if self.weights.file is not None:
            return [] if (snapshot / self.weights.file).is_file() else [f"{self.weights.file} is missing"]
        faults = list(folder_faults(snapshot))
        return faults if faults or has_all_small_files(snapshot) else ["its tokenizer is missing"]

    def _stored_clause(self) -> str:
        """Return what the local cache has, as the end of "owner/name …"."""
        partial = sum(path.stat().st_size for path in self._folder.glob(f"blobs/*{PARTIAL}"))
        commit = self._stored_commit()
        faults = self._missing(commit) if commit else []
        if not faults:
            return (
                f"is incomplete in the local cache ({sized(partial)} of a file)"
                if partial
                else "is not in the local cache"
            )
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        return f"is incomplete in the local cache ({faults[0]}{more})"

    def _list(self) -> Listing:
        """Return the repository's files, as the hub lists them now."""
        with progress(f"asking the hub for the files of {self.name}", is_brief=True):
            info = HfApi().model_info(
                self.name, revision=self.weights.revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
            )
        if not info.sha or any(file.size is None or file.blob_id is None for file in info.siblings or []):
            raise ConnectionError("the hub's answer has no sizes and digests, so HF_ENDPOINT is not a complete mirror")
        files = (
            RemoteFile(file.rfilename, file.size or 0, str(file.blob_id), file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or []
        )
        return Listing(info.sha, tuple(files))

    def _wanted(self, listing: Listing, read_index: Callable[[RemoteFile], str] | None = None) -> list[RemoteFile]:
        if self.weights.file is not None:
            return [select_file(self.name, listing, self.weights.file)]
        return select(self.name, listing, read_index or (lambda file: self._index(listing.commit, file)))

    def _index(self, commit: str, file: RemoteFile) -> str:
        """Download the index of the weights, which determines the other files, and return its text."""
        self._get([file], commit, Transfer(f"getting {file.path}", file.num_bytes))
        return (self._snapshot(commit) / file.path).read_text(encoding="utf-8")

    def _download(self, commit: str, wanted: Sequence[RemoteFile], show: Show | None) -> None:
        """Make every file of `wanted` complete in the snapshot's folder."""
        self._remove_abandoned(wanted)
        record = read_record(self._record(commit))
        missing = list(self._incomplete(commit, wanted, record.checked if record else frozenset(), show))
        if not missing:
            return
        partials = {partial_path(self._blob(file)) for file in missing}
        present = sum(path.stat().st_size for path in partials if path.is_file())
        total = sum(file.num_bytes for file in _by_blob(missing).values())
        require_free(total - present, hub_cache(), str(self.weights), "HF_HOME")
        resumed = f", {sized(present)} of it from an interrupted download" if present else ""
        logger.info(
            "getting %s from the hub (once; it stays in %s): %d files, %s%s",
            self.weights,
            hub_cache(),
            len(missing),
            sized(total),
            resumed,
        )
        transfer = Transfer(f"getting {self.weights}", total)
        with reported(transfer, show):
            self._get(missing, commit, transfer)

    def _incomplete(
        self, commit: str, wanted: Sequence[RemoteFile], checked: frozenset[str], show: Show | None
    ) -> Iterator[RemoteFile]:
        """Yield the files that must be downloaded. Those on disk that are not in `checked` are compared with their digests."""
        unchecked = []
        for file in wanted:
            pointer, blob = self._snapshot(commit) / file.path, self._blob(file)
            path = pointer if pointer.is_file() else blob
            if not path.is_file() or path.stat().st_size != file.num_bytes:
                _remove(pointer, blob)
                yield file
            elif file.path in checked:
                _link(blob, pointer)
            else:
                unchecked.append((file, path, pointer, blob))
        transfer = Transfer(f"checking {self.weights}", sum(file.num_bytes for file, *_ in unchecked))
        with reported(transfer, show) if transfer.total > _CHECKED_SILENTLY else contextlib.nullcontext():
            for file, path, pointer, blob in unchecked:
                if matches(path, file):
                    _link(blob, pointer)
                else:
                    logger.warning("%s is damaged in the cache: it is downloaded again", file.path)
                    _remove(pointer, blob)
                    yield file
                transfer.add(file.num_bytes)

    def _get(self, files: Sequence[RemoteFile], commit: str, transfer: Transfer) -> None:
        """Download files, several at a time. The large ones begin first."""
        self._folder.joinpath("blobs").mkdir(parents=True, exist_ok=True)
        stopping = threading.Event()
        # Files with the same content have the same blob.
        jobs = deque(sorted(_by_blob(files).values(), key=lambda file: -file.num_bytes))
        failures: list[Exception] = []

        def work() -> None:
            while jobs and not failures:
                try:
                    self._get_one(jobs.popleft(), commit, transfer, stopping)
                except (IndexError, Stopped):
                    return
                except Exception as error:
                    failures.append(error)
                    stopping.set()

        # Daemon threads, so that the process can end during a download.
        threads = [threading.Thread(target=work, name="download", daemon=True) for _ in range(_MAX_THREADS)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            stopping.set()
        if failures:
            raise failures[0]
        for file in files:
            _link(self._blob(file), self._snapshot(commit) / file.path)

    def _get_one(self, file: RemoteFile, commit: str, transfer: Transfer, stopping: threading.Event) -> None:
        if file.num_bytes > _MAX_BYTES:
            path = Path(hf_hub_download(self.name, file.path, revision=commit))
            transfer.add(file.num_bytes)
            if not matches(path, file):
                _remove(path, self._blob(file))
                raise Damaged(f"{file.path} does not have the digest that the hub states")
            return
        url = hf_hub_url(self.name, file.path, revision=commit)
        BlobDownload(url, self._blob(file), file, transfer, stopping).run()

    def _keep_record(self, listing: Listing, checked: Sequence[RemoteFile]) -> None:
        """Record that the files on disk have the hub's digests."""
        path = self._record(listing.commit)
        before = read_record(path)
        paths = {file.path for file in checked} | (before.checked if before else frozenset())
        write_record(path, replace(listing, checked=frozenset(paths)))

    def _name_commit(self, commit: str) -> None:
        """Make the commit the one of its branch in the cache."""
        revision = self.weights.revision or constants.DEFAULT_REVISION
        if revision == commit:
            return
        reference = self._folder / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        replace_text(reference, commit)

    def _remove_abandoned(self, wanted: Sequence[RemoteFile]) -> None:
        """Remove unfinished files that killed processes left and that no download continues."""
        ours = {partial_path(self._blob(file)).name for file in wanted}
        for path in self._folder.glob("blobs/*.incomplete"):
            with contextlib.suppress(OSError):
                age = time.time() - path.stat().st_mtime
                if path.name not in ours and age > (
                    _PARTIAL_SECONDS if path.name.endswith(PARTIAL) else _ABANDONED_SECONDS
                ):
                    path.unlink()

    def _snapshot(self, commit: str) -> Path:
        return self._folder / "snapshots" / commit

    def _path(self, commit: str) -> Path:
        return self._snapshot(commit) / (self.weights.file or "")

    def _blob(self, file: RemoteFile) -> Path:
        return self._folder / "blobs" / file.etag

    def _record(self, commit: str) -> Path:
        return self._records / f"{commit}.json"


_CHECKED_SILENTLY = 1 << 30  # bytes: reading fewer takes a second


def _by_blob(files: Sequence[RemoteFile]) -> dict[str, RemoteFile]:
    """Return one file of each content."""
    return {file.etag: file for file in files}


def _fault(path: Path, file: RemoteFile) -> str | None:
    """Return a clause if a file is missing or has another size than the hub's."""
    try:
        num_bytes = path.stat().st_size
    except OSError:
        return f"{file.path} is missing"
    return None if num_bytes == file.num_bytes else f"{file.path} has {sized(num_bytes)} of {sized(file.num_bytes)}"


def _link(blob: Path, pointer: Path) -> None:
    """Make the snapshot's file: a link to the blob or, where links are impossible, the blob itself."""
    if pointer.is_file():
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)  # a link to a blob that was missing
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.replace(pointer)


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
