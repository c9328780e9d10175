"""What the bridge shows the inference server, and whom it takes for it: certificates and a token. Knows nothing of calls."""

import logging
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from http_bridge.settings import PREFIX, ConfigError, Settings

# Files are looked at this often at most.
LOOK_SECONDS = 1.0
_logger = logging.getLogger(__name__)
_Options = Sequence[tuple[str, int | str]]
_Version = tuple[int, int, int] | None


class Credentials:
    """Opens channels with what the files hold: once that was good, it stays in force until there is something as good."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError with one sentence about a file that cannot be used."""
        token = settings.grpc_token
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._ca = settings.grpc_tls_ca
        self._cert, self._key = settings.grpc_tls_client_cert, settings.grpc_tls_client_key
        self._server_name = settings.grpc_tls_server_name
        self._version = self._look()
        self._looked = time.monotonic()
        self._tls = self._read()

    @property
    def has_tls(self) -> bool:
        return self._tls is not None

    def channel(self, target: str, options: _Options, host: str = "") -> grpc.aio.Channel:
        """`host`: whom the server's certificate is for, unless a setting says so; empty: what the target says.

        Call it inside the event loop that uses the channel.
        """
        if host:
            options = (*options, ("grpc.default_authority", host))
        if self._tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        host = self._server_name or host
        name = (("grpc.ssl_target_name_override", host),) if host else ()
        return grpc.aio.secure_channel(target, self._tls, options=(*options, *name))

    def renew(self) -> bool:
        """Read files that have changed. Returns whether the next channel would be another than the last."""
        if self._tls is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        version = self._look()
        if version == self._version:
            return False
        tls, problem = None, None
        try:
            tls = self._read()
        except ConfigError as error:
            problem = error
        if self._look() != version:
            return False  # somebody is still writing; the next look reads again
        self._version = version
        if tls is None:
            _logger.warning("%s What was read before stays in force.", problem)
            return False
        self._tls = tls
        _logger.info("the certificates were read anew; new calls use them")
        return True

    def _look(self) -> list[_Version]:
        return [_version(path) for path in (self._ca, self._cert, self._key) if path is not None]

    def _read(self) -> grpc.ChannelCredentials | None:
        if self._ca is None:
            return None
        authorities = _bytes("CA", self._ca)
        # gRPC would say in its own log alone what it cannot use, and call in vain, so Python's ssl looks first.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self._ca)
        except OSError as error:
            raise ConfigError(
                f"{PREFIX}GRPC_TLS_CA={self._ca} holds no certificates in PEM ({_reason(error)})."
            ) from None
        if self._cert is None or self._key is None:
            return grpc.ssl_channel_credentials(authorities)
        pair = (_bytes("CLIENT_KEY", self._key), _bytes("CLIENT_CERT", self._cert))
        try:
            # Without a password, an encrypted key would have one asked for on the terminal.
            context.load_cert_chain(self._cert, self._key, password="")
        except OSError as error:
            raise ConfigError(
                f"{PREFIX}GRPC_TLS_CLIENT_CERT={self._cert} and {PREFIX}GRPC_TLS_CLIENT_KEY={self._key} are not a "
                f"certificate and its unencrypted key, both in PEM ({_reason(error)})."
            ) from None
        return grpc.ssl_channel_credentials(authorities, *pair)


def _bytes(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{PREFIX}GRPC_TLS_{name}={path}: {error.strerror}.") from None


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or "unreadable"
    return str(reason).lower().replace("_", " ")


def _version(path: Path) -> _Version:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
