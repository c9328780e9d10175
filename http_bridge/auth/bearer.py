"""Checks the credentials of requests and finds the account of a token. Does not depend on routes."""

import hashlib
from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge.auth.token_file import TokenFile
from http_bridge.errors import ApiError
from tailrace_shared.accounts import EVERY_ACCOUNT, is_account

# Key in the state of a request: the account of its token, or an empty string.
ACCOUNT_KEY = "account"

_MISPLACED = "the path has an API token where the account belongs"
_Headers = Sequence[tuple[bytes, bytes]]


class TokenCheck:
    """Accepts requests with a known token, sent as a bearer token, or as X-Auth-Key together with X-Auth-Email."""

    def __init__(self, tokens: Iterable[str], file: TokenFile | None = None) -> None:
        """Accept the given tokens. Without tokens and without a file, accept every request.

        Args:
            tokens: Tokens that are valid for every account.
            file: Further tokens, each for one account, or for every account (`*`).
        """
        self._digests = frozenset(_digest(token.encode()) for token in tokens)
        self._file = file

    def check(self, headers: _Headers, account: str | None = None) -> str:
        """Return the account of the request's token; empty if it is for every account or no token is needed.

        Args:
            headers: The request's headers, names in lower case.
            account: Account in the path, if the path has one.

        Raises:
            ApiError: 400/9106 for a missing or malformed header, 401/10000 for an unknown token, 403/10000 for a token of
                another account.
        """
        if not self._digests and self._file is None:
            return ""
        granted = self._account(_digest(_token(headers)))
        if granted is None:
            raise ApiError(401, 10000, "Authentication error")
        if granted == EVERY_ACCOUNT:
            return ""
        if account is not None and account != granted:
            hint = f": {_MISPLACED}" if self.is_token(account) else ""
            raise ApiError(403, 10000, f"Authentication error{hint}")
        return granted

    def is_token(self, text: str) -> bool:
        """Return True if `text` is a known token."""
        return self._account(_digest(text.encode())) is not None

    def _account(self, digest: bytes) -> str | None:
        # A lookup in a hash table. Its time depends on the digest's hash, which has a random key in each process, and
        # reveals nothing about a known digest. No token can be computed from a digest either.
        if digest in self._digests:
            return EVERY_ACCOUNT
        return None if self._file is None else self._file.accounts().get(digest)


class RequireToken:
    """ASGI application that passes a request to `app` if its credentials pass `check` and its account is valid."""

    def __init__(self, app: ASGIApp, check: TokenCheck) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = scope["path_params"].get("account")
        scope["state"][ACCOUNT_KEY] = self._check.check(scope["headers"], account)
        if account is not None and not is_account(account):
            path = scope["path"]
            hint = f" ({_MISPLACED})" if self._check.is_token(account) else ""
            raise ApiError(
                404, 7003, f"Could not route to {path:.200}, perhaps your object identifier is invalid?{hint}"
            )
        await self._app(scope, receive, send)


def check_inner_account(scope: Scope, account: str) -> None:
    """Check the account in the path of a wrapped request. `scope`: the outer request, which RequireToken has passed on.

    Raises:
        ApiError: 403/10000 for an account other than the token's, 404/7003 for an invalid account.
    """
    if scope["state"].get(ACCOUNT_KEY) not in (None, "", account):
        raise ApiError(403, 10000, "Authentication error")
    if not is_account(account):
        raise ApiError(404, 7003, "Could not route to this path, perhaps your object identifier is invalid?")


def token_id(headers: _Headers) -> str:
    """Return an id of the request's token that does not reveal the token: 32 hexadecimal digits.

    Raises:
        ApiError: 400/9106 for a missing or malformed header.
    """
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
