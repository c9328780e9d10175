"""The file of API tokens: whose token is let in, known by its digest alone. Knows the file; knows no requests.

# account, and SHA-256 of the token in hexadecimal digits; * is every account
acme  2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b
"""

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path

from http_bridge.settings import PREFIX, ConfigError

EVERY_ACCOUNT = "*"
_ACCOUNT = re.compile(r"\*|[\w.-]{1,128}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_LOOK_SECONDS = 1.0
_logger = logging.getLogger(__name__)


class TokenFile:
    """The tokens in a file, read again once it has changed.

    A file that has become unreadable or wrong is told in the log, once for each change of it, and until it is mended the
    tokens read last are let in.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if the file cannot be read or a line of it is wrong."""
        self._path = path
        self._version = self._look()
        self._looked_at = time.monotonic()
        self._accounts = read_tokens(path)

    def accounts(self) -> Mapping[bytes, str]:
        """Accounts by the SHA-256 of their tokens, no older than a second."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            # Taken before it is read: a change in between is seen the next time.
            version = self._look()
            if version != self._version:
                self._version = version
                self._read()
        return self._accounts

    def _look(self) -> tuple[int, ...] | None:
        """Differs for each version of the file, its rights included; None if it is not there."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino

    def _read(self) -> None:
        try:
            self._accounts = read_tokens(self._path)
        except ConfigError as error:
            _logger.error("%s The tokens read before stay in force.", error)
        else:
            _logger.info("%d tokens in %s", len(self._accounts), self._path)


def read_tokens(path: Path) -> dict[bytes, str]:
    """Accounts by digest. Raises ConfigError, a sentence with the number of the line that is wrong."""
    name = f"{PREFIX}API_TOKENS_FILE={path}"
    try:
        # Opening a pipe would wait for somebody to write.
        text = path.read_text("utf-8") if path.is_file() else None
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: it is not UTF-8.") from None
    if text is None:
        raise ConfigError(f"{name}: there is no such file.")
    accounts: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        # The line may hold a token, put there by mistake: it is not repeated.
        if len(fields) != 2 or not _ACCOUNT.fullmatch(fields[0]) or not _DIGEST.fullmatch(fields[1]):
            raise ConfigError(
                f"{name}: line {number} is not `<account> <SHA-256 of the token, 64 hexadecimal digits>`; "
                "`tailrace token ACCOUNT` writes such lines."
            )
        digest = bytes.fromhex(fields[1])
        if digest in accounts:
            raise ConfigError(f"{name}: the token of line {number} stands in an earlier line too.")
        accounts[digest] = fields[0]
    return accounts
