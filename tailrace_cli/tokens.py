"""`tailrace token`: makes an API token and the line by which the bridge knows it. Knows the file's form; asks nobody."""

import hashlib
import re
import secrets
import sys

from tailrace_cli.asking import Failure

# As http_bridge/auth/token_file.py reads it.
_ACCOUNT = re.compile(r"\*|[\w.-]{1,128}", re.ASCII)
_PREFIX = "tr_"
_RANDOM_BYTES = 32


def make_token(account: str) -> None:
    """Print a new token for `account`, once, to stderr and its line to stdout, so that `>> FILE` adds the line alone.

    Raises Failure for an account that can be none.
    """
    if not _ACCOUNT.fullmatch(account):
        raise Failure("An account is 1 to 128 letters, digits, dots, dashes and underscores; '*' is every account.")
    token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    print(f"The token, which is shown this once: {token}", file=sys.stderr)
    print("Its line for the file of TAILRACE_API_TOKENS_FILE:", file=sys.stderr, flush=True)
    print(f"{account} {hashlib.sha256(token.encode()).hexdigest()}")
