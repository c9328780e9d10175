"""The bridge's credentials for the inference server: certificates, the CA and a token. Does not depend on calls."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc

from http_bridge.settings.bridge import Settings
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.file_watcher import ReloadableFile
from tailrace_shared.variables import PREFIX

# Shortest time between two checks of the files.
CHECK_SECONDS = 1.0
_Options = Sequence[tuple[str, int | str]]


class Credentials:
    """Opens channels with the certificates in the files, or without TLS if no CA is set.

    If a changed file is invalid, the last valid certificates stay active.
    """

    def __init__(self, settings: Settings) -> None:
        """Read the files.

        Raises:
            ConfigurationError: A file cannot be used.
        """
        token = settings.grpc_token
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._ca = settings.grpc_tls_ca
        self._cert, self._key = settings.grpc_tls_client_cert, settings.grpc_tls_client_key
        self._server_name = settings.grpc_tls_server_name
        paths = [path for path in (self._ca, self._cert, self._key) if path is not None]
        self._files = ReloadableFile(paths, self._read, min_seconds=CHECK_SECONDS)

    @property
    def has_tls(self) -> bool:
        """True if channels use TLS."""
        return self._files.content is not None

    def channel(self, target: str, options: _Options, host: str = "") -> grpc.aio.Channel:
        """Open a channel. Call it inside the event loop that uses the channel.

        Args:
            target: The server, in gRPC's notation.
            options: gRPC's channel options.
            host: Name that the server's certificate must contain unless a setting overrides it; empty: the target's
                host.
        """
        if host:
            options = (*options, ("grpc.default_authority", host))
        tls = self._files.content
        if tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        host = self._server_name or host
        name = (("grpc.ssl_target_name_override", host),) if host else ()
        return grpc.aio.secure_channel(target, tls, options=(*options, *name))

    def reload_if_changed(self) -> bool:
        """Read files that changed. Return True if the next channel differs from the last one."""
        return self._files.reload_if_changed()

    def _read(self) -> grpc.ChannelCredentials | None:
        if self._ca is None:
            return None
        authorities = _bytes("CA", self._ca)
        # gRPC reports an unusable file in its own log only, and its calls fail. Python's ssl reports it here.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self._ca)
        except OSError as error:
            raise ConfigurationError(
                f"{PREFIX}GRPC_TLS_CA={self._ca} contains no certificates in PEM ({_reason(error)})."
            ) from None
        if self._cert is None or self._key is None:
            return grpc.ssl_channel_credentials(authorities)
        pair = (_bytes("CLIENT_KEY", self._key), _bytes("CLIENT_CERT", self._cert))
        try:
            # Without a password, Python would prompt for one on the terminal if the key is encrypted.
            context.load_cert_chain(self._cert, self._key, password="")
        except OSError as error:
            raise ConfigurationError(
                f"{PREFIX}GRPC_TLS_CLIENT_CERT={self._cert} and {PREFIX}GRPC_TLS_CLIENT_KEY={self._key} are not a "
                f"certificate and its unencrypted key, both in PEM ({_reason(error)})."
            ) from None
        return grpc.ssl_channel_credentials(authorities, *pair)


def _bytes(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{PREFIX}GRPC_TLS_{name}={path}: {error.strerror}.") from None


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or "unreadable"
    return str(reason).lower().replace("_", " ")
