"""The repositories of the local hub and their files, the requests that it received, and its faults."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

_LFS_SUFFIXES = (".safetensors", ".gguf", ".bin")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        path: Its path in the repository.
        content: Its bytes.
    """

    path: str
    content: bytes

    @property
    def is_lfs(self) -> bool:
        """True if the hub keeps the file in LFS."""
        return self.path.endswith(_LFS_SUFFIXES)

    @cached_property
    def sha256(self) -> str:
        """Digest of an LFS file."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """Digest of the git blob: of the content, or of an LFS file's pointer."""
        content = f"oid sha256:{self.sha256}".encode() if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        """The digest under which the client stores the file."""
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass
class Repository:
    """A repository with one commit at a time.

    Attributes:
        files: The files by path.
        refusal: Answer to every download: "gated" (401 without a token, 403 with one), or None.
    """

    files: dict[str, HubFile]
    refusal: str | None = None

    @property
    def commit(self) -> str:
        """The commit, which depends on the files."""
        digests = [f"{path} {file.etag}" for path, file in sorted(self.files.items())]
        return hashlib.sha1("\n".join(digests).encode()).hexdigest()


class Request(NamedTuple):
    """A request that the hub received."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Faults:
    """Errors and delays of the hub.

    Attributes:
        bytes_per_second: Rate of each large file's transfer; None: unlimited.
        break_after: The connection of a large file is closed after this number of bytes; None: never.
        num_breaks: Number of times that `break_after` applies.
        corrupt: Paths of files in which the hub changes one byte.
        ignores_ranges: True answers a request for a range with the whole file.
        is_down: True answers every request with 503.
        delay: Seconds before each answer.
    """

    bytes_per_second: float | None = None
    break_after: int | None = None
    num_breaks: int = 1 << 30
    corrupt: set[str] = field(default_factory=set)
    ignores_ranges: bool = False
    is_down: bool = False
    delay: float = 0.0
