"""Decides whether a request's credentials are let in, and for which account. Knows tokens; knows nothing of routes."""

import hashlib
from collections.abc import Iterable, Sequence

from http_bridge.auth.token_file import EVERY_ACCOUNT, TokenFile
from http_bridge.errors import ApiError

# Under this name the state of a request holds the account of its token, if that is for one account.
ACCOUNT_KEY = "account"

_Headers = Sequence[tuple[bytes, bytes]]


class TokenCheck:
    """Lets in who sends a known token as a bearer token or, beside X-Auth-Email, as X-Auth-Key."""

    def __init__(self, tokens: Iterable[str], file: TokenFile | None = None) -> None:
        """tokens: for every account. file: tokens for theirs. Without both, everyone is let in, with any token or none."""
        self._digests = frozenset(_digest(token.encode()) for token in tokens)
        self._file = file

    def check(self, headers: _Headers, account: str | None = None) -> str:
        """The account that the token is for; empty if it is for every one, or if nobody needs one.

        headers: the request's, names in lower case. account: the one that the path names, if it does.

        Raises ApiError: 400/9106 for a missing or malformed header, 401/10000 for an unknown token, 403/10000 for a token
        of another account.
        """
        if not self._digests and self._file is None:
            return ""
        granted = self._account(_digest(_token(headers)))
        if granted is None:
            raise ApiError(401, 10000, "Authentication error")
        if granted == EVERY_ACCOUNT:
            return ""
        if account not in (None, granted):
            raise ApiError(403, 10000, "Authentication error")
        return granted

    def _account(self, digest: bytes) -> str | None:
        # Looked up, not compared one by one. What a lookup's time could tell is how a digest's hash, keyed anew in each
        # process, lies to those of the known digests: nothing about a digest, and from a digest no token follows.
        if digest in self._digests:
            return EVERY_ACCOUNT
        return None if self._file is None else self._file.accounts().get(digest)


def token_id(headers: _Headers) -> str:
    """Names the token of a request without giving it away: 32 hexadecimal digits. Raises like TokenCheck.check."""
    return _digest(_token(headers)).hex()[:32]


def _token(headers: _Headers) -> bytes:
    given = [value for name, value in headers if name == b"authorization"]
    if not given:
        keys = [value for name, value in headers if name == b"x-auth-key"]
        if len(keys) != 1 or not any(name == b"x-auth-email" for name, _ in headers):
            raise ApiError(400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
        return keys[0]
    scheme, *tokens = given[0].split()[:3] or (b"",)
    if len(given) != 1 or scheme.lower() != b"bearer" or len(tokens) != 1:
        raise ApiError(400, 9106, "Authentication failed (status: 400)")
    return tokens[0]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
