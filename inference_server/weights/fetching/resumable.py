"""Downloads one file so that a call after an interruption continues after the last received byte.

The hub's own client starts over if its process was interrupted. This server uses it only for a lone config.json, and
for files that need its protocol (see hub.py). This module uses the client's session, headers and errors, so that the
same environment variables set proxies, certificates and tokens.
"""

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from inference_server.errors import first_line
from inference_server.weights.fetching.hub_errors import is_untrusted
from inference_server.weights.fetching.listing import RemoteFile
from inference_server.weights.fetching.transfer import Transfer

logger = logging.getLogger(__name__)

PARTIAL = ".tailrace.incomplete"
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0  # longest wait for the next byte
_PAUSES = (0.2, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before each further attempt; new bytes restart the sequence
_LONGEST_PAUSE = 60.0
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class Damaged(Exception):
    """The content does not match the hub's digest."""


class Stopped(Exception):
    """The download was stopped, because the download of another file failed."""


def partial_path(blob: Path) -> Path:
    """Return the path of the file that contains the first bytes of `blob` until the download is complete."""
    return blob.with_name(blob.name + PARTIAL)


class BlobDownload:
    """The download of one file into the hub's cache."""

    def __init__(self, url: str, blob: Path, file: RemoteFile, transfer: Transfer, stopping: threading.Event) -> None:
        """Describe the download.

        Args:
            url: The file's address.
            blob: The path of the complete file.
            file: The file's path, size and digest on the hub.
            transfer: Counts the bytes.
            stopping: Ends the download when it is set. The received bytes stay on disk.
        """
        self._url = url
        self._blob = blob
        self._file = file
        self._transfer = transfer
        self._stopping = stopping

    def run(self) -> None:
        """Download the rest of the file, compare its digest, and rename it to its final name.

        A file with a wrong digest is downloaded once more from its first byte.

        Raises:
            Damaged: The second download also has a wrong digest.
            Stopped: `stopping` was set.
            HfHubHTTPError: The hub refused the request.
            OSError: The file cannot be written, or several responses in a row ended without a new byte.
            Exception: The connection broke several times in a row without a new byte. Its class is the HTTP client's.
        """
        for is_last in (False, True):
            if self._attempt():
                return
            partial_path(self._blob).unlink(missing_ok=True)
            self._transfer.skip(-self._file.num_bytes)
            logger.warning(
                "%s was damaged in transit%s", self._file.path, "" if is_last else ": it is downloaded again"
            )
        raise Damaged(f"{self._file.path} does not match the hub's digest")

    def _attempt(self) -> bool:
        """Download the rest of the file, and rename it if its digest is right. Returns False if it is wrong."""
        partial = partial_path(self._blob)
        with partial.open("a+b") as opened:
            digest, start = self._digest_of(opened)
            digest = self._receive(opened, digest, start)
            if digest.hexdigest() != self._file.etag:
                return False
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(self._blob)
        return True

    def _digest_of(self, opened: BinaryIO) -> tuple[Any, int]:
        """Return the digest and the number of the bytes on disk. A file that is too long is truncated to 0 bytes."""
        digest = self._file.digest()
        opened.seek(0, os.SEEK_END)
        if opened.tell() > self._file.num_bytes:
            opened.truncate(0)
        opened.seek(0)
        while chunk := opened.read(_CHUNK):
            self._check_stop()
            digest.update(chunk)
            self._transfer.skip(len(chunk))
        return digest, opened.tell()

    def _receive(self, opened: BinaryIO, digest: Any, start: int) -> Any:
        """Write the rest of the file. Returns the digest of the whole file."""
        pauses = iter(_PAUSES)
        done = start
        while done < self._file.num_bytes:
            before = done
            try:
                with self._response(done) as response:
                    if done and response.status_code != 206:  # the hub ignores the range and sends the whole file
                        opened.truncate(0)
                        self._transfer.add(-done)
                        digest, done = self._file.digest(), 0
                    for chunk in response.iter_bytes():
                        self._check_stop()
                        chunk = chunk[: self._file.num_bytes - done]
                        opened.write(chunk)
                        digest.update(chunk)
                        self._transfer.add(len(chunk))
                        done += len(chunk)
            except Exception as error:
                if not _is_transient(error):
                    raise
                failure: Exception | None = error
            else:
                failure = None
            if done >= self._file.num_bytes:
                break
            pauses = self._pause(pauses if done <= before else iter(_PAUSES), failure)
        return digest

    @contextlib.contextmanager
    def _response(self, first: int) -> Any:
        """Yield the response to a request for the bytes from `first` on."""
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if first:
            headers["Range"] = f"bytes={first}-"
        with get_session().stream(
            "GET", self._url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_SECONDS
        ) as response:
            hf_raise_for_status(response)
            yield response

    def _pause(self, pauses: Any, failure: Exception | None) -> Any:
        """Wait before the next attempt. Raises the failure after too many attempts without a new byte."""
        seconds = next(pauses, None)
        if seconds is None:
            raise failure or ConnectionError(f"{self._file.path} ends early each time")
        seconds = max(seconds, _asked_pause(failure))
        reason = first_line(failure) if failure else "the connection ended early"
        logger.warning("%s: %s; the download continues in %.1f s", self._file.path, reason, seconds)
        if self._stopping.wait(seconds):
            raise Stopped
        return pauses

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise Stopped


def _asked_pause(failure: Exception | None) -> float:
    """Return the pause in seconds that the hub requested, at most 60; 0 if it requested none."""
    if not isinstance(failure, HfHubHTTPError):
        return 0.0
    asked = failure.response.headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_PAUSE) if asked.isdecimal() else 0.0


def _is_transient(error: Exception) -> bool:
    """Return True if the same request can succeed later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    # The HTTP client's transport errors are not OSErrors, but disk errors are.
    return not isinstance(error, OSError | OfflineModeIsEnabled | Stopped) and not is_untrusted(error)
