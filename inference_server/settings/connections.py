"""The settings of the server's connections: addresses, TLS and tokens."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from tailrace_shared.addresses import split_address
from tailrace_shared.settings_base import ServiceSettings, group


def _checked(address: str) -> str:
    split_address(address)
    return address


# host:port or [ipv6]:port
Address = Annotated[str, AfterValidator(_checked)]


class ConnectionSettings(ServiceSettings):
    """Addresses of the gRPC server, its certificates and tokens."""

    grpc_address: Address = Field(
        "localhost:50051",
        description="Address of the gRPC server, host:port; localhost is 127.0.0.1 and, with IPv6, ::1. Port 0 selects "
        "a free port.",
        json_schema_extra=group("network"),
    )
    grpc_health_address: Address | None = Field(
        None,
        description="Address, host:port, that serves the health service without TLS, for probes that do not support TLS. "
        "Unset: not served.",
        json_schema_extra=group("network"),
    )
    grpc_connection_age_seconds: float = Field(
        300.0,
        ge=1,
        le=86_400,
        allow_inf_nan=False,
        description="Age of a connection in seconds, 1 to 86400, after which it is replaced, so that clients find new "
        "servers. Its replies are finished.",
        json_schema_extra=group("network"),
    )
    grpc_tls_cert: Path | None = Field(
        None,
        description="File with the certificate chain (PEM) of the gRPC server. Set together with its key: clients must "
        "use TLS.",
        json_schema_extra=group("TLS and tokens"),
    )
    grpc_tls_key: Path | None = Field(
        None,
        description="File with the private key (PEM, unencrypted) of the certificate.",
        json_schema_extra=group("TLS and tokens"),
    )
    grpc_tls_client_ca: Path | None = Field(
        None,
        description="File of CA certificates (PEM). Set: gRPC clients must present a certificate that one of them signed.",
        json_schema_extra=group("TLS and tokens"),
    )
    grpc_tokens_file: Path | None = Field(
        None,
        description="File of SHA-256 digests, one per line. Set: gRPC calls need a bearer token with one of these digests.",
        json_schema_extra=group("TLS and tokens"),
    )

    @model_validator(mode="after")
    def _has_whole_pair(self) -> Self:
        if (self.grpc_tls_cert is None) != (self.grpc_tls_key is None):
            raise ValueError("TAILRACE_GRPC_TLS_CERT and TAILRACE_GRPC_TLS_KEY belong together: set both or neither")
        if self.grpc_tls_client_ca is not None and self.grpc_tls_cert is None:
            raise ValueError("TAILRACE_GRPC_TLS_CLIENT_CA needs TAILRACE_GRPC_TLS_CERT and TAILRACE_GRPC_TLS_KEY")
        return self
