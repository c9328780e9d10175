"""Loads the TLS certificate, the key and the client CAs of the gRPC server."""

import ssl
from pathlib import Path

import grpc

from inference_server.settings.server import Settings
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.file_watcher import ReloadableFile


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return the credentials of the port, or None if the settings have no certificate.

    Changed files apply to new connections. Open connections continue unchanged.

    Raises:
        ConfigurationError: A file cannot be read or is not valid; the message names its variable.
    """
    cert, key, client_ca = settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_client_ca
    if cert is None or key is None:
        return None

    def read() -> grpc.ServerCertificateConfiguration:
        pair = (_read("KEY", key), _read("CERT", cert))
        _check_pair(cert, key)
        if client_ca is None:
            return grpc.ssl_server_certificate_configuration([pair])
        authorities = _read("CLIENT_CA", client_ca)
        _check_authorities(client_ca)
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    files = ReloadableFile([path for path in (cert, key, client_ca) if path is not None], read)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Return a new configuration, or None if no file changed.

        gRPC calls this function before each handshake, never in parallel.
        """
        return files.content if files.reload_if_changed() else None

    # The type stubs do not allow None as a result.
    return grpc.dynamic_ssl_server_credentials(files.content, fetch, client_ca is not None)  # type: ignore[arg-type]


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"TAILRACE_GRPC_TLS_{name}={path}: {error.strerror}") from None


# If gRPC cannot use a file, only its own log shows the error. Python's ssl module therefore checks the files first.


def _check_pair(cert: Path, key: Path) -> None:
    try:
        # Without this argument, OpenSSL would prompt for the password of an encrypted key on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except OSError as error:
        raise ConfigurationError(
            f"TAILRACE_GRPC_TLS_CERT={cert} and TAILRACE_GRPC_TLS_KEY={key} are not a certificate and its unencrypted "
            f"key, both in PEM ({_reason(error)})"
        ) from None


def _check_authorities(client_ca: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(client_ca)
    except OSError as error:
        raise ConfigurationError(
            f"TAILRACE_GRPC_TLS_CLIENT_CA={client_ca} contains no certificates in PEM ({_reason(error)})"
        ) from None


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or "unreadable"
    return str(reason).lower().replace("_", " ")
