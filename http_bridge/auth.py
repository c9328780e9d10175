"""Decides whether a request's credentials are let in. Knows tokens; knows nothing of routes."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from http_bridge.errors import ApiError

_Headers = Sequence[tuple[bytes, bytes]]


class TokenCheck:
    """Lets in who sends one of `tokens` as a bearer token or, beside X-Auth-Email, as X-Auth-Key; without tokens, everyone."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = tuple(_digest(token.encode()) for token in tokens)

    def check(self, headers: _Headers) -> None:
        """Pass or raise: ApiError 400/9106 for a missing or malformed header, 401/10000 for a wrong token.

        headers: the request's, names in lower case.
        """
        if not self._digests:
            return
        if not self._is_known(_token(headers)):
            raise ApiError(401, 10000, "Authentication error")

    def _is_known(self, token: bytes) -> bool:
        # Digests have one length and every one is compared, so the time taken tells nothing about the tokens.
        digest = _digest(token)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


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
