"""The settings that both HTTP transports share."""

import ssl

import httpx2

from tailrace.endpoint import Endpoint

CONNECT_SECONDS = 10.0
_IDLE_CONNECTIONS = 20
_IDLE_SECONDS = 30.0


def limits() -> httpx2.Limits:
    """Return the limits of the pool: any number of simultaneous requests, and 20 idle connections for later ones."""
    return httpx2.Limits(
        max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS, keepalive_expiry=_IDLE_SECONDS
    )


def verification(endpoint: Endpoint) -> "ssl.SSLContext | bool":
    """Return the TLS settings: the default certificates, or those of the endpoint's files; False without TLS.

    Raises:
        ValueError: A file is not readable, or has no certificate or no key.
    """
    if not endpoint.has_tls:
        return False  # loading the certificates would take longer than a request
    if not (endpoint.ca_file or endpoint.cert_file):
        return True
    path = endpoint.ca_file
    try:
        context = ssl.create_default_context(cafile=path or None)
        if path := endpoint.cert_file:
            context.load_cert_chain(path, endpoint.key_file)
    except OSError as error:  # also ssl.SSLError
        raise ValueError(f"{path} cannot be used for TLS: {error.strerror or error}") from None
    return context
