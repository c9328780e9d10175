"""The files of a repository on the hub at one commit, with the hub's sizes and digests."""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub.

    Attributes:
        path: Its path in the repository.
        num_bytes: Its size in bytes.
        blob_id: SHA-1 digest of the git blob. For an LFS file, this is the digest of its pointer.
        sha256: SHA-256 digest of the content of an LFS file; None: the file is not in LFS.
    """

    path: str
    num_bytes: int
    blob_id: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        """The name of the file's blob in the hub's cache."""
        return self.sha256 or self.blob_id

    def digest(self) -> Any:
        """Return a hash object that computes `etag` from the content."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.num_bytes, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a commit.

    Attributes:
        commit: The commit's id.
        files: All files of the commit.
        checked: Paths of the files whose content on disk matched the hub's digest.
    """

    commit: str
    files: tuple[RemoteFile, ...]
    checked: frozenset[str] = frozenset()

    def file(self, path: str) -> RemoteFile | None:
        """Return the file with this path, or None."""
        return next((file for file in self.files if file.path == path), None)


def matches(path: Path, file: RemoteFile) -> bool:
    """Return True if the content of `path` has the hub's digest."""
    if path.stat().st_size != file.num_bytes:
        return False
    digest = file.digest()
    with path.open("rb", buffering=0) as opened:
        while chunk := opened.read(_READ_BYTES):
            digest.update(chunk)
    return bool(digest.hexdigest() == file.etag)


def read_record(path: Path) -> Listing | None:
    """Return the listing that `write_record` wrote to `path`, or None if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Listing(
            content["commit"], tuple(RemoteFile(**file) for file in content["files"]), frozenset(content["checked"])
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_record(path: Path, listing: Listing) -> None:
    """Write a listing to disk. Failures to write are ignored, because the record only saves time."""
    files = [asdict(file) for file in listing.files]
    text = json.dumps({"commit": listing.commit, "files": files, "checked": sorted(listing.checked)})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)


def replace_text(path: Path, text: str) -> None:
    """Write a small file atomically. Raises OSError if it cannot be written."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
