"""The address of a service with the caller's credentials, from arguments or from the environment."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tailrace_shared.accounts import is_account

DEFAULT_URL = "http://127.0.0.1:8787"
_REST_PORTS = {"http": 80, "https": 443}
_GRPC_SCHEMES = ("grpc", "grpcs")
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1", re.IGNORECASE)
# A traceparent of W3C Trace Context, checked only as far as a header must be well-formed. The services check the rest.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A service and the credentials for it.

    Attributes:
        url: The address, without a slash at its end.
        is_grpc: Whether the address is an inference server's (grpc:// or grpcs://) instead of a bridge's.
        target: host:port.
        has_tls: Whether the connection is encrypted.
        is_local: Whether the host is localhost or a loopback address, for which no proxy is used.
        token: Bearer token; empty: none.
        account: Account of the requests; empty: the token's.
        ca_file: File with the certificates to trust; empty: those of the system over REST, gRPC's own over gRPC.
        cert_file: File with the client's own certificate; empty: none.
        key_file: File with the key of that certificate; empty: none.
    """

    url: str
    is_grpc: bool
    target: str
    has_tls: bool
    is_local: bool
    token: str = field(repr=False)
    account: str
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


def endpoint(
    url: str | None,
    token: str | None,
    account: str | None,
    ca_file: "str | os.PathLike[str] | None",
    client_cert: "tuple[str | os.PathLike[str], str | os.PathLike[str]] | None",
) -> Endpoint:
    """Return the endpoint. Arguments that are None come from the environment: TAILRACE_URL, TAILRACE_TOKEN, TAILRACE_ACCOUNT.

    For grpc:// and grpcs://, TAILRACE_GRPC_TOKEN has priority over TAILRACE_TOKEN, and the files come from
    TAILRACE_GRPC_TLS_CA, _CLIENT_CERT and _CLIENT_KEY.

    Raises:
        ValueError: The address, the token or the account is not valid, or a file does not exist.
    """
    chosen = (url or os.environ.get("TAILRACE_URL") or DEFAULT_URL).strip().rstrip("/")
    try:
        parts = urlsplit(chosen)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{chosen} is not an address: {error}") from None
    if "@" in parts.netloc:  # the message does not repeat a password
        raise ValueError("the address has a user name or a password: pass a token as `token` or TAILRACE_TOKEN instead")
    is_grpc = parts.scheme in _GRPC_SCHEMES
    is_known = parts.scheme in (*_REST_PORTS, *_GRPC_SCHEMES) and not (parts.query or parts.fragment)
    if not is_known or not parts.hostname or (is_grpc and port is None):
        raise ValueError(
            f"{chosen} is not an address of Tailrace: write http://127.0.0.1:8787 for a bridge, "
            "grpc://127.0.0.1:50051 for an inference server, https:// or grpcs:// with TLS"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    names = ("TAILRACE_GRPC_TOKEN", "TAILRACE_TOKEN") if is_grpc else ("TAILRACE_TOKEN",)
    found = next((value for name in names if (value := os.environ.get(name))), "") if token is None else token
    if not (found.isascii() and found.isprintable() and " " not in found):
        raise ValueError("the token may contain printable ASCII characters only, without spaces")
    chosen_account = (os.environ.get("TAILRACE_ACCOUNT") or "") if account is None else account
    # Over REST, the account is a part of the path.
    if chosen_account and not is_grpc and not is_account(chosen_account):
        raise ValueError(
            f"{chosen_account!r} is not the name of an account: use letters, digits, dots, dashes and underscores"
        )
    ca, cert, key = _files(is_grpc, ca_file, client_cert)
    return Endpoint(
        url=chosen,
        is_grpc=is_grpc,
        target=f"{host}:{port or _REST_PORTS[parts.scheme]}",
        has_tls=parts.scheme in ("https", "grpcs"),
        is_local=_LOOPBACK.fullmatch(parts.hostname) is not None,
        token=found,
        account=chosen_account,
        ca_file=ca,
        cert_file=cert,
        key_file=key,
    )


def _files(
    is_grpc: bool,
    ca_file: "str | os.PathLike[str] | None",
    client_cert: "tuple[str | os.PathLike[str], str | os.PathLike[str]] | None",
) -> tuple[str, str, str]:
    def variable(name: str) -> str:
        return (os.environ.get(f"TAILRACE_GRPC_TLS_{name}") or "") if is_grpc else ""

    ca = variable("CA") if ca_file is None else os.fspath(ca_file)
    cert, key = variable("CLIENT_CERT"), variable("CLIENT_KEY")
    if client_cert is not None:
        cert, key = os.fspath(client_cert[0]), os.fspath(client_cert[1])
    if bool(cert) != bool(key):
        raise ValueError("a client's certificate needs its key, and a key its certificate")
    for path in filter(None, (ca, cert, key)):
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
    return ca, cert, key


def trace_context() -> dict[str, str]:
    """Return the trace context of the environment (TRACEPARENT, TRACESTATE), for the headers of a request."""
    parent = os.environ.get("TRACEPARENT", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    state = os.environ.get("TRACESTATE", "")
    return {"traceparent": parent} | (
        {"tracestate": state} if state and state.isascii() and state.isprintable() else {}
    )
