"""The settings that both gRPC transports share: options of the channel, credentials, metadata."""

import uuid
from pathlib import Path

import grpc

from tailrace.endpoint import Endpoint, trace_context

REQUEST_ID_KEY = "x-request-id"
Metadata = tuple[tuple[str, str], ...]


def options(endpoint: Endpoint) -> list[tuple[str, int]]:
    """Return the options of a channel: no limit on the size of messages, and no proxy to this machine itself."""
    # 2,048 vectors of 1,024 numbers take 8 MiB, twice gRPC's default.
    sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return [*sizes, ("grpc.enable_http_proxy", 0)] if endpoint.is_local else sizes


def credentials(endpoint: Endpoint) -> "grpc.ChannelCredentials | None":
    """Return the TLS credentials; None: the address has no TLS."""
    if not endpoint.has_tls:
        return None

    def content(path: str) -> bytes | None:
        return Path(path).read_bytes() if path else None

    return grpc.ssl_channel_credentials(
        content(endpoint.ca_file), content(endpoint.key_file), content(endpoint.cert_file)
    )


def metadata(endpoint: Endpoint) -> Metadata:
    """Return the metadata of one call: a new request id, the token, and the environment's trace context.

    Because the client creates the id, a refused call has one too.
    """
    token = {"authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    return tuple(({REQUEST_ID_KEY: str(uuid.uuid4())} | token | trace_context()).items())
