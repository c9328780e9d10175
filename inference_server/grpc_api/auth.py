"""Decides which calls are let in by their bearer tokens. Knows digests of tokens; knows nothing of what is called."""

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

# Whoever watches a process holds no token, and what gRPC asks by itself to balance carries none: both learn how it is
# doing, no more. Everything else is denied without one, also what does not exist.
_OPEN_SERVICES = ("/grpc.health.v1.Health/", f"/{load_report.SERVICE}/")
# Longest time for which a token that was taken out of the file is still let in.
CHECK_SECONDS = 1.0
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")

# A class that takes arguments in its stubs alone.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TokenCheck(grpc.aio.ServerInterceptor):
    """Lets in calls with `authorization: Bearer <token>` if the token's SHA-256 digest stands in the file."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError."""
        self._file = ReloadableFile((path,), lambda: read_digests(path), min_seconds=CHECK_SECONDS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        if not details.method.startswith(_OPEN_SERVICES):
            try:
                self._check(details)
            except Unauthenticated as error:
                return _refusing(error)
        return await continuation(details)

    def _check(self, details: grpc.HandlerCallDetails) -> None:
        token = _token(details)
        if token is None:
            raise Unauthenticated("this server asks for a token: send the metadata authorization: Bearer <token>")
        self._file.reload_if_changed()
        # Digests have one length and every one is compared, so the time taken tells nothing about the tokens.
        digest = hashlib.sha256(token).digest()
        if not sum(hmac.compare_digest(digest, known) for known in self._file.content):
            raise Unauthenticated("the token is none of those that this server lets in")


def read_digests(path: Path) -> tuple[bytes, ...]:
    """The file's digests: a line each, with or without the ` -` of sha256sum; # begins a comment.

    Raises ConfigurationError. A file without a digest lets nobody in.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
        raise ConfigurationError(f"TAILRACE_GRPC_TOKENS_FILE={path}: {reason}") from None
    digests = []
    for number, line in enumerate(lines, 1):
        digest, *rest = line.partition("#")[0].split() or ("",)
        if not digest:
            continue
        # What stands there may be a token by mistake, so it is not repeated.
        if not _DIGEST.fullmatch(digest) or rest not in ([], ["-"]):
            raise ConfigurationError(
                f"TAILRACE_GRPC_TOKENS_FILE={path}: line {number} is no SHA-256 digest of 64 hexadecimal digits"
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


def _refusing(error: Unauthenticated) -> "_Handler":
    """Ends any kind of call, before anything of it is read."""

    async def refuse(requests: object, context: Context) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
