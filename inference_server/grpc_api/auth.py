"""Accepts or rejects calls by their bearer tokens. The tokens file contains digests; the tokens are never stored."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from inference_server.errors import Unauthenticated
from inference_server.grpc_api import load_report
from inference_server.grpc_api.status import Context, abort
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.file_watcher import ReloadableFile

# Health probes have no token, and neither do the calls for load reports that gRPC clients make by themselves. Both
# services reveal only the server's state. All other methods need a token, including unknown methods.
_OPEN_SERVICES = ("/grpc.health.v1.Health/", f"/{load_report.SERVICE}/")
# Shortest time between two checks of the tokens file, in seconds. A token is accepted for at most this time after its
# removal.
CHECK_SECONDS = 1.0
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")

# Quoted, because the class is generic in its type stubs only, not at run time.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TokenCheck(grpc.aio.ServerInterceptor):
    """Interceptor that accepts calls with `authorization: Bearer <token>` if the file contains the token's digest.

    Calls of the open services need no token.
    """

    def __init__(self, path: Path) -> None:
        """Read the tokens file; it is read again when it changes.

        Raises:
            ConfigurationError: The file cannot be read, or a line of it is not a digest.
        """
        self._file = ReloadableFile((path,), lambda: read_digests(path), min_seconds=CHECK_SECONDS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Return the method's handler, or one that ends the call with UNAUTHENTICATED."""
        if not details.method.startswith(_OPEN_SERVICES):
            try:
                self._check(details)
            except Unauthenticated as error:
                return _rejecting(error)
        return await continuation(details)

    def _check(self, details: grpc.HandlerCallDetails) -> None:
        token = _token(details)
        if token is None:
            raise Unauthenticated("this server requires a token: send the metadata authorization: Bearer <token>")
        self._file.reload_if_changed()
        # All digests have the same length, and every one is compared: the duration reveals nothing about the tokens.
        digest = hashlib.sha256(token).digest()
        if not sum(hmac.compare_digest(digest, known) for known in self._file.content):
            raise Unauthenticated("this server does not accept the token")


def read_digests(path: Path) -> tuple[bytes, ...]:
    """Return the digests in the file, 32 bytes each. If there are none, no token is accepted.

    Format: one hexadecimal digest per line, with or without the ` -` of sha256sum; # begins a comment.

    Raises:
        ConfigurationError: The file cannot be read, or a line is not a digest.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"TAILRACE_GRPC_TOKENS_FILE={path}: {reason}") from None
    digests = []
    for number, line in enumerate(lines, 1):
        digest, *rest = line.partition("#")[0].split() or ("",)
        if not digest:
            continue
        # The line may contain a token by mistake, so the message does not repeat it.
        if not _DIGEST.fullmatch(digest) or rest not in ([], ["-"]):
            raise ConfigurationError(
                f"TAILRACE_GRPC_TOKENS_FILE={path}: line {number} is not a SHA-256 digest of 64 hexadecimal digits"
            )
        digests.append(bytes.fromhex(digest))
    return tuple(digests)


def _token(details: grpc.HandlerCallDetails) -> bytes | None:
    given = [value for key, value in details.invocation_metadata or () if key == "authorization"]
    if len(given) != 1:
        return None
    value = given[0].encode() if isinstance(given[0], str) else given[0]
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token.strip() else None


def _rejecting(error: Unauthenticated) -> "_Handler":
    """Return a handler that ends any kind of call before its request is read."""

    async def reject(requests: object, context: Context) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(reject)
