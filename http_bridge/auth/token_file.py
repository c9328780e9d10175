"""Reads the file of API tokens, which contains the tokens' SHA-256 digests. Does not depend on requests.

The file's format:

# account and SHA-256 of its token in hexadecimal digits; * is every account
acme  2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b
"""

import re
from collections.abc import Mapping
from pathlib import Path

from tailrace_shared.accounts import EVERY_ACCOUNT, is_account
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.file_watcher import ReloadableFile
from tailrace_shared.variables import PREFIX

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
CHECK_SECONDS = 1.0


class TokenFile:
    """The tokens of a file, reloaded when it changes. If a changed file is invalid, the last valid tokens stay active."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigurationError: The file cannot be read, or one of its lines is invalid.
        """
        self._file = ReloadableFile((path,), lambda: read_tokens(path), min_seconds=CHECK_SECONDS)

    def accounts(self) -> Mapping[bytes, str]:
        """Return the accounts by the SHA-256 of their tokens.

        Reads the file again if it has changed. Checks for changes at most once a second.
        """
        self._file.reload_if_changed()
        return self._file.content


def read_tokens(path: Path) -> dict[bytes, str]:
    """Return the accounts by the SHA-256 of their tokens.

    Raises:
        ConfigurationError: The file cannot be read, or a line is invalid; the message has the line's number.
    """
    name = f"{PREFIX}API_TOKENS_FILE={path}"
    try:
        # Only a regular file is opened: opening a pipe would block until another process writes to it.
        text = path.read_text("utf-8") if path.is_file() else None
    except OSError as error:
        raise ConfigurationError(f"{name}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name}: it is not UTF-8.") from None
    if text is None:
        raise ConfigurationError(f"{name}: the file does not exist.")
    accounts: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        # The line may contain a token by mistake, so the message does not repeat it.
        is_pair = len(fields) == 2 and (fields[0] == EVERY_ACCOUNT or is_account(fields[0]))
        if not is_pair or not _DIGEST.fullmatch(fields[1]):
            raise ConfigurationError(
                f"{name}: line {number} is not `<account> <SHA-256 of the token, 64 hexadecimal digits>`; "
                "`tailrace token ACCOUNT` writes such lines."
            )
        digest = bytes.fromhex(fields[1])
        if digest in accounts:
            raise ConfigurationError(f"{name}: the token of line {number} is also in an earlier line.")
        accounts[digest] = fields[0]
    return accounts
