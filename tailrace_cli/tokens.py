"""The command `tailrace token`: makes an API token and its line for the bridge's file of tokens.

The token is random, and neither service needs to run.
"""

import hashlib
import secrets
import sys

from tailrace_cli.errors import Failure
from tailrace_cli.output import write
from tailrace_shared.accounts import EVERY_ACCOUNT, is_account

_PREFIX = "tr_"
_RANDOM_BYTES = 32


def make_token(account: str) -> None:
    """Print a new token for `account` to stderr and its line to stdout, so that `>> FILE` adds only the line.

    Raises:
        Failure: `account` is not a valid account name.
    """
    if account != EVERY_ACCOUNT and not is_account(account):
        raise Failure(
            f"{account!r} is not an account name. Use 1 to 128 letters, digits, dots, dashes and underscores, "
            "or '*' for every account."
        )
    token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    print(f"The token, which is shown only once: {token}", file=sys.stderr)
    print("Its line for the file that TAILRACE_API_TOKENS_FILE names:", file=sys.stderr, flush=True)
    write(f"{account} {hashlib.sha256(token.encode()).hexdigest()}")
