"""A local server for the part of the Hugging Face hub's HTTP protocol that downloads use.

The real huggingface_hub client connects to it, in a process whose HF_ENDPOINT is `Hub.url`, because the client reads
that variable at import. As on the hub, large files are in LFS: `resolve` redirects to another path, and their digest is
SHA-256. Other files have the digest of a git blob. Faults are attributes, which a test may change between requests.
`python -m tests.support.hub` serves folders.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from tests.support.hub.contents import Faults, HubFile, Repository, Request
from tests.support.processes import ROOT

_CHUNK = 16 << 10
_MODEL = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+)(/.*)?)?$")
_RESOLVE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")


class Hub(ThreadingHTTPServer):
    """The server. It serves from `start` until `close`.

    Attributes:
        requests: Every request, in order.
        faults: The errors and delays in effect.
        sent_bytes: Bytes of large files that were sent, by path.
    """

    daemon_threads = True

    def __init__(self) -> None:
        """Choose a free port on 127.0.0.1."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults = Faults()
        self.sent_bytes: dict[str, int] = {}
        self.scheme = "http"
        self.content_host = "localhost"

    @property
    def url(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    @property
    def content_url(self) -> str:
        """Address of large files: another host name, because the client follows a HEAD's redirect within a host only."""
        return f"{self.scheme}://{self.content_host}:{self.server_port}"

    def add(self, name: str, files: Path | Mapping[str, bytes], *, refusal: str | None = None) -> Repository:
        """Add a repository, or give one a new commit.

        Args:
            name: The repository's id, `owner/name`.
            files: A folder, or the content of each file by path.
            refusal: See Repository.
        """
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*") if path.is_file()
            }
        repository = Repository({path: HubFile(path, content) for path, content in files.items()}, refusal)
        self.repositories[name] = repository
        return repository

    def start(self) -> Self:
        """Serve from a thread."""
        threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        return self

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Return the environment of a process that downloads from this hub.

        Args:
            home: The value of HF_HOME, for the hub's cache.
            more: Further variables.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        return {**kept, **hub, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}

    def downloads_of(self, path: str) -> list[Request]:
        """Return the requests that asked for the content of a file."""
        return [each for each in self.requests if each.method == "GET" and each.path.endswith(f"/{path}")]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub without repositories for the `with` block."""
    hub = Hub().start()
    try:
        yield hub
    finally:
        hub.close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer GET, and HEAD without a body."""
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.server.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        time.sleep(self.server.faults.delay)
        if self.server.faults.is_down:
            self._refuse(503, None)
        elif path.startswith("/cdn/"):
            self._send_content(self._linked(path))
        elif match := _MODEL.match(path):
            self._answer_about(match["name"], match["what"], match["revision"])
        elif match := _RESOLVE.match(path):
            self._resolve(match["name"], match["revision"], match["file"])
        else:
            self._refuse(404, None)

    do_HEAD = do_GET

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        """Return the repository, or refuse the request and return None."""
        repository = self.server.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound")
        elif revision not in (None, "main", repository.commit):
            self._refuse(404, "RevisionNotFound")
            repository = None
        return repository

    def _answer_about(self, name: str, what: str | None, revision: str | None) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if what == "tree":
            self._send_json([self._tree_entry(file) for file in repository.files.values()])
            return
        siblings = [self._sibling(file) for file in repository.files.values()]
        gated = "manual" if repository.refusal == "gated" else False
        self._send_json({"id": name, "sha": repository.commit, "gated": gated, "private": False, "siblings": siblings})

    def _tree_entry(self, file: HubFile) -> dict[str, object]:
        entry = {"type": "file", "path": file.path, "size": len(file.content), "oid": file.blob_id}
        lfs = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
        return {**entry, "lfs": lfs} if file.is_lfs else entry

    def _sibling(self, file: HubFile) -> dict[str, object]:
        if "blobs=" not in self.path:
            return {"rfilename": file.path}
        entry = {"rfilename": file.path, "size": len(file.content), "blobId": file.blob_id}
        lfs = {"sha256": file.sha256, "size": len(file.content), "pointerSize": 134}
        return {**entry, "lfs": lfs} if file.is_lfs else entry

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.refusal == "gated":
            self._refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            return
        file = repository.files.get(path)
        if file is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": repository.commit})
            return
        about = {"X-Repo-Commit": repository.commit}
        if file.is_lfs:
            linked = {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.sha256}"'}
            address = f"{self.server.content_url}/cdn/{name}/{path}"
            self._send(302, {**about, **linked, "Location": address, "Content-Length": "0"})
        else:
            self._send_content(file, about)

    def _linked(self, path: str) -> HubFile:
        owner, name, file = path.removeprefix("/cdn/").split("/", 2)
        return self.server.repositories[f"{owner}/{name}"].files[file]

    def _send_content(self, file: HubFile, about: Mapping[str, str] | None = None) -> None:
        """Send a file, or the range of it that the request names."""
        content, faults = file.content, self.server.faults
        if file.path in faults.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        first, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        headers = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", **(about or {})}
        if wanted and not faults.ignores_ranges:
            first, status = int(wanted[1]), 206
            if first >= len(content):
                self._send(416, {**headers, "Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(status, {**headers, "Content-Length": str(len(content) - first)})
        if self.command == "GET":
            self._send_slowly(file, content[first:])

    def _send_slowly(self, file: HubFile, content: bytes) -> None:
        faults, sent = self.server.faults, self.server.sent_bytes
        end = len(content)
        if file.is_lfs and faults.break_after is not None and faults.num_breaks > 0 and faults.break_after < end:
            faults.num_breaks -= 1
            end = faults.break_after
            self.close_connection = True
        for offset in range(0, end, _CHUNK):
            chunk = content[offset : min(offset + _CHUNK, end)]
            try:
                self.wfile.write(chunk)
            except OSError:  # the client was killed
                self.close_connection = True
                return
            if file.is_lfs:
                sent[file.path] = sent.get(file.path, 0) + len(chunk)
                if faults.bytes_per_second:
                    time.sleep(len(chunk) / faults.bytes_per_second)

    def _send_json(self, body: object) -> None:
        content = json.dumps(body).encode()
        self._send(200, {"Content-Type": "application/json", "Content-Length": str(len(content))})
        if self.command == "GET":
            with contextlib.suppress(OSError):  # the client was killed
                self.wfile.write(content)

    def _refuse(self, status: int, code: str | None, headers: Mapping[str, str] | None = None) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(status, {**named, **(headers or {}), "Content-Length": "0"})

    def _send(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""
