"""Downloads models from the Hugging Face hub into the cache of the hub's client, which other programs share.

A commit's files become visible under the branch's name when all of them are complete and match the hub's digests. After
that, a server start sends no request: a newer commit is fetched on demand only (`refresh`).
"""

import contextlib
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from inference_server.progress import progress
from inference_server.weights.disk.locks import exclusively
from inference_server.weights.disk.space import require_free, sized
from inference_server.weights.fetching.hub_cache import CachedModel, hub_cache, link, remove_files
from inference_server.weights.fetching.hub_errors import explaining_the_hub, gated
from inference_server.weights.fetching.listing import Listing, RemoteFile, matches
from inference_server.weights.fetching.resumable import BlobDownload, Damaged, Stopped, partial_path
from inference_server.weights.fetching.selection import CONFIG
from inference_server.weights.fetching.transfer import Show, Transfer, reported
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)
# The hub's client uses one of these HTTP clients. Below WARNING they log each address, and addresses of large files
# contain a signature.
for _name in ("httpx", "httpx2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TIMEOUT_SECONDS = 30.0  # timeout of the request for the list of files
_MAX_THREADS = 4  # files that are downloaded at the same time
# The hub serves larger files only through another protocol (Xet), which its client implements.
_MAX_BYTES = 50_000_000_000
_CHECKED_SILENTLY = 1 << 30  # bytes; a check of fewer takes at most about a second, so it shows no progress


class HubModel:
    """A model on the hub: a repository in transformers' format, or one GGUF file of a repository."""

    def __init__(self, weights: Weights, cache_dir: Path) -> None:
        """Describe the model without accessing it.

        Args:
            weights: A source with `hub`.
            cache_dir: The server's cache folder, where the files' digests are recorded.

        Raises:
            ConfigurationError: The id is invalid.
        """
        assert weights.hub is not None
        self.weights = weights
        self.name = weights.hub
        try:
            validate_repo_id(self.name)
        except ValueError as error:
            raise ConfigurationError(f"{self.name!r} is not a model id of the hub: {error}") from None
        self.cached = CachedModel(weights, cache_dir)

    def fetch_config(self) -> Path:
        """Return a folder with the configuration. Downloads only config.json, and only if it is not stored.

        Raises:
            ConfigurationError: For the same reasons as `fetch`.
        """
        folder = self.cached.stored_config()
        if folder is not None:
            return folder
        with explaining_the_hub(self.name, self.weights.revision):
            try:
                return Path(hf_hub_download(self.name, CONFIG, revision=self.weights.revision)).parent
            except RemoteEntryNotFoundError:
                listing = self._list()
                # Raises a ConfigurationError with a better reason, if there is one.
                self.cached.wanted(listing, lambda file: self._index(listing.commit, file))
                raise

    def fetch(self, *, refresh: bool = False, show: Show | None = None) -> Path:
        """Return the model's folder or GGUF file, after downloading the missing files.

        Args:
            refresh: True to look for a newer commit of the branch even if the model is complete.
            show: Called with lines of progress; None to log them.

        Raises:
            ConfigurationError: The model is incomplete and cannot be downloaded; the message names the first missing
                file.
        """
        if not refresh and (path := self.cached.stored()):
            return path
        with exclusively(self.cached.lock, f"downloading {self.weights}"):
            if not refresh and (path := self.cached.stored()):
                return path
            with explaining_the_hub(self.name, self.weights.revision, stored=self.cached.stored_clause()):
                listing = self._list()
                wanted = self.cached.wanted(listing, lambda file: self._index(listing.commit, file))
                self._download(listing.commit, wanted, show)
                self.cached.keep_record(listing, wanted)
                self.cached.name_commit(listing.commit)
            return self.cached.path(listing.commit)

    def _list(self) -> Listing:
        """Return the repository's files, as the hub lists them now."""
        with progress(f"requesting the list of files of {self.name}", is_brief=True):
            info = HfApi().model_info(
                self.name, revision=self.weights.revision, files_metadata=True, timeout=_TIMEOUT_SECONDS
            )
        files = tuple(
            RemoteFile(file.rfilename, file.size or 0, str(file.blob_id), file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or []
        )
        if not info.sha or not all(_DIGEST.fullmatch(file.etag) for file in files):
            if info.gated:
                raise ConfigurationError(gated(self.name))
            raise ConfigurationError(
                f"{constants.ENDPOINT} reports no digests for {self.name}: it is not a complete mirror of the hub"
            )
        if outside := next((file.path for file in files if not _is_inside(file.path)), None):
            raise ConfigurationError(f"{self.name} has a file with an unsafe path: {outside!r}")
        return Listing(info.sha, files)

    def _index(self, commit: str, file: RemoteFile) -> str:
        """Download the index of the weights, which determines the other files, and return its text."""
        self._get([file], commit, Transfer(f"getting {file.path}", file.num_bytes))
        return (self.cached.snapshot(commit) / file.path).read_text(encoding="utf-8")

    def _download(self, commit: str, wanted: Sequence[RemoteFile], show: Show | None) -> None:
        """Make every file of `wanted` complete in the snapshot's folder."""
        self.cached.remove_abandoned(wanted)
        missing = list(self._incomplete(commit, wanted, show))
        if not missing:
            return
        partials = {partial_path(self.cached.blob(file)) for file in missing}
        present = sum(path.stat().st_size for path in partials if path.is_file())
        total = sum(file.num_bytes for file in _by_blob(missing).values())
        require_free(total - present, hub_cache(), str(self.weights), "HF_HOME")
        resumed = f", {sized(present)} of it from an interrupted download" if present else ""
        logger.info(
            "getting %s from the hub (once; it stays in %s): %d file%s, %s%s",
            self.weights,
            hub_cache(),
            len(missing),
            "" if len(missing) == 1 else "s",
            sized(total),
            resumed,
        )
        transfer = Transfer(f"getting {self.weights}", total)
        with reported(transfer, show):
            self._get(missing, commit, transfer)

    def _incomplete(self, commit: str, wanted: Sequence[RemoteFile], show: Show | None) -> Iterator[RemoteFile]:
        """Yield the files that must be downloaded. Removes faulty files, and links complete ones into the snapshot.

        Compares a file on disk with the hub's digest if this was not done before.
        """
        checked, unchecked = self.cached.checked(commit), []
        for file in wanted:
            pointer, blob = self.cached.snapshot(commit) / file.path, self.cached.blob(file)
            path = pointer if pointer.is_file() else blob
            if not path.is_file() or path.stat().st_size != file.num_bytes:
                remove_files(pointer, blob)
                yield file
            elif file.path in checked:
                link(blob, pointer)
            else:
                unchecked.append((file, path, pointer, blob))
        transfer = Transfer(f"checking {self.weights}", sum(file.num_bytes for file, *_ in unchecked))
        with reported(transfer, show) if transfer.total > _CHECKED_SILENTLY else contextlib.nullcontext():
            for file, path, pointer, blob in unchecked:
                if matches(path, file):
                    link(blob, pointer)
                else:
                    logger.warning("%s is damaged in the cache: it is downloaded again", file.path)
                    remove_files(pointer, blob)
                    yield file
                transfer.add(file.num_bytes)

    def _get(self, files: Sequence[RemoteFile], commit: str, transfer: Transfer) -> None:
        """Download files, several at a time. The large ones begin first."""
        self.cached.blobs.mkdir(parents=True, exist_ok=True)
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
            link(self.cached.blob(file), self.cached.snapshot(commit) / file.path)

    def _get_one(self, file: RemoteFile, commit: str, transfer: Transfer, stopping: threading.Event) -> None:
        if file.num_bytes > _MAX_BYTES:
            path = Path(hf_hub_download(self.name, file.path, revision=commit))
            transfer.add(file.num_bytes)
            if not matches(path, file):
                remove_files(path, self.cached.blob(file))
                raise Damaged(f"{file.path} does not match the hub's digest")
            return
        url = hf_hub_url(self.name, file.path, revision=commit)
        BlobDownload(url, self.cached.blob(file), file, transfer, stopping).run()


def _is_inside(path: str) -> bool:
    """Return True if a file's path stays in the folder of its commit."""
    return bool(path) and not path.startswith("/") and "\\" not in path and ".." not in path.split("/")


def _by_blob(files: Sequence[RemoteFile]) -> dict[str, RemoteFile]:
    """Return one file for each blob, by the blob's name."""
    return {file.etag: file for file in files}
