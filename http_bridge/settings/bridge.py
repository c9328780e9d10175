"""The bridge's settings, read once from the environment. Does not depend on the code that uses them."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from http_bridge.protocol.grpc_targets import split_targets
from http_bridge.protocol.profiles import ProfileName
from http_bridge.settings.batches import BatchSettings
from http_bridge.settings.types import (
    LOWER_CASE,
    Address,
    Hosts,
    LoopbackAddress,
    Origins,
    Seconds,
    Targets,
    Token,
    Tokens,
)
from tailrace_shared.addresses import is_loopback, split_address
from tailrace_shared.logs import LogFormat, LogLevel
from tailrace_shared.settings_base import group
from tailrace_shared.variables import PREFIX


class Settings(BatchSettings):
    """The bridge's settings, read from environment variables: TAILRACE_ plus the field's name in upper case.

    The group of a field is its section in the documentation.
    """

    secrets = frozenset({"api_tokens", "grpc_token"})

    http_address: Address = Field(
        default="localhost:8787",
        json_schema_extra=group("network"),
        description="Address at which the bridge listens, host:port; localhost is 127.0.0.1 and, with IPv6, ::1. Port 0 "
        "selects a free port. An address beyond loopback needs API tokens.",
    )
    grpc_address: Targets = Field(
        default="127.0.0.1:50051",
        json_schema_extra=group("network"),
        description="Address of the inference server, host:port. Several addresses, separated by commas or behind one "
        "name, share the load; names are looked up every 2 s. Targets in gRPC's notation are left to gRPC.",
    )
    binding_address: LoopbackAddress = Field(
        default="",
        json_schema_extra=group("network"),
        description="Loopback address, host:port, that serves the Worker binding without a token. Empty: not served.",
    )
    allowed_hosts: Hosts = Field(
        default=(),
        json_schema_extra=group("network"),
        description="Host names, separated by commas, that requests may name besides localhost and loopback addresses; "
        ".example.com accepts every name below it, * any name. Only used without API tokens and for the "
        "Worker binding's address; with tokens any name is accepted.",
    )
    cors_origins: Origins = Field(
        default=(),
        json_schema_extra=group("network"),
        description="Origins whose pages may call the bridge, separated by commas, or * for all. Empty: none.",
    )
    grpc_tls_ca: Path | None = Field(
        default=None,
        json_schema_extra=group("TLS and tokens"),
        description="File of CA certificates (PEM) that check the inference server's certificate. Set: TLS is used.",
    )
    grpc_tls_client_cert: Path | None = Field(
        default=None,
        json_schema_extra=group("TLS and tokens"),
        description="File with the certificate chain (PEM) that the bridge presents to the inference server.",
    )
    grpc_tls_client_key: Path | None = Field(
        default=None,
        json_schema_extra=group("TLS and tokens"),
        description="File with the private key (PEM, unencrypted) of the bridge's certificate.",
    )
    grpc_tls_server_name: str = Field(
        default="",
        json_schema_extra=group("TLS and tokens"),
        description="Name that the inference server's certificate must contain. Empty: the host of the address.",
    )
    grpc_token: Token = Field(
        default="",
        repr=False,
        json_schema_extra=group("TLS and tokens"),
        description="Bearer token for calls to the inference server. Empty: none.",
    )
    api_tokens: Tokens = Field(
        default=(),
        repr=False,
        json_schema_extra=group("TLS and tokens"),
        description="Bearer tokens that are valid for every account, separated by commas. Empty, and no file of tokens: "
        "every request is accepted, with any token or none.",
    )
    api_tokens_file: Path | None = Field(
        default=None,
        json_schema_extra=group("TLS and tokens"),
        description="File of further tokens, each for one account or * for all. A line has the account and the token's "
        "SHA-256 in hexadecimal digits; # starts a comment. The file is read again when it changes.",
    )
    max_body_bytes: int = Field(
        default=4_000_000,
        ge=1_000,
        # A gRPC message may have 4 MiB by default; the difference is left for the other fields of the request.
        le=4_000_000,
        json_schema_extra=group("limits"),
        description="Largest request body in bytes, 1000 to 4000000. A larger one is refused with 413.",
    )
    max_messages: int = Field(
        default=1_024,
        ge=1,
        le=100_000,
        json_schema_extra=group("limits"),
        description="Largest number of messages in a conversation, 1 to 100000. More are refused with 400.",
    )
    max_schema_depth: int = Field(
        default=32,
        ge=1,
        # A body that is nested deeper than 128 levels is refused as a whole.
        le=100,
        json_schema_extra=group("limits"),
        description="Deepest nesting of arrays and objects in a JSON Schema inside a request, 1 to 100. A whole body "
        "may be nested 128 deep.",
    )
    max_connections: int = Field(
        default=2_048,
        ge=1,
        le=1_000_000,
        json_schema_extra=group("limits"),
        description="Largest number of open connections, 1 to 1000000, including idle ones and health checks. A further "
        "one gets 503.",
    )
    max_header_bytes: int = Field(
        default=65_536,
        ge=1_024,
        le=1_048_576,
        json_schema_extra=group("limits"),
        description="Largest size of request line and headers together in bytes, 1024 to 1048576. A larger one is "
        "refused with 400.",
    )
    header_timeout_seconds: Seconds = Field(
        default=10,
        json_schema_extra=group("timeouts"),
        description="Longest time in seconds, above 0 to 86400, in which a client must send the headers of a request, "
        "from its first byte or from connecting; then 408.",
    )
    body_timeout_seconds: Seconds = Field(
        default=30,
        json_schema_extra=group("timeouts"),
        description="Longest time in seconds, above 0 to 86400, in which a client must send the body of a request; then "
        "408.",
    )
    idle_timeout_seconds: Seconds = Field(
        default=30,
        json_schema_extra=group("timeouts"),
        description="Time in seconds, above 0 to 86400, for which an idle connection is kept open.",
    )
    write_timeout_seconds: Seconds = Field(
        default=30,
        json_schema_extra=group("timeouts"),
        description="Longest time in seconds, above 0 to 86400, for which a client may stop reading its reply. Then the "
        "connection is closed and the run cancelled.",
    )
    request_timeout_seconds: Seconds = Field(
        default=600,
        json_schema_extra=group("timeouts"),
        description="Longest time for one request in seconds, above 0 to 86400, including its time in the wait queue; "
        "then 408.",
    )
    stream_comment_seconds: float = Field(
        default=10,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        json_schema_extra=group("timeouts"),
        description="Time of silence in seconds, up to 86400, after which a stream gets a comment, so that proxies keep "
        "it open. 0: no comments.",
    )
    http_shutdown_grace_seconds: int = Field(
        default=30,
        ge=0,
        le=3_600,
        json_schema_extra=group("timeouts"),
        description="Time in whole seconds, 0 to 3600, for which running streams may continue after SIGTERM.",
    )
    http_metrics_address: Address = Field(
        default="",
        json_schema_extra=group("observability"),
        description="Address at which the bridge serves Prometheus metrics, host:port. Empty: not served.",
    )
    log_level: Annotated[LogLevel, LOWER_CASE] = Field(
        default="info",
        json_schema_extra=group("observability"),
        description="Least severity that is logged: debug, info, warning or error.",
    )
    log_format: Annotated[LogFormat, LOWER_CASE] = Field(
        default="text",
        json_schema_extra=group("observability"),
        description="Format of the log: text, or json for one JSON object per line.",
    )
    profile: ProfileName = Field(
        default="default",
        json_schema_extra=group("compatibility"),
        description="API version of Workers AI: default, 2023-11, 2026 or 2026-strict. The header "
        "tailrace-profile overrides it for one request.",
    )
    deterministic: bool = Field(
        default=False,
        json_schema_extra=group("testing"),
        description="Give equal requests equal replies, for tests: the choices of a request without a seed have fixed seeds.",
    )
    recordings: str | None = Field(
        default=None,
        json_schema_extra=group("testing"),
        description="Set, as for the inference server: the choices of a request without a seed have fixed seeds, so that "
        "each has a recording.",
    )
    stream_padding: bool = Field(
        default=False,
        json_schema_extra=group("compatibility"),
        description="Add random text as `p` to each event of a stream, so that packet sizes do not reveal the lengths "
        "of tokens.",
    )

    @model_validator(mode="after")
    def _check_tls_pair(self) -> Self:
        cert, key = f"{PREFIX}GRPC_TLS_CLIENT_CERT", f"{PREFIX}GRPC_TLS_CLIENT_KEY"
        if (self.grpc_tls_client_cert is None) != (self.grpc_tls_client_key is None):
            raise ValueError(f"{cert} and {key} need each other: set both or neither")
        if self.grpc_tls_ca is None and (self.grpc_tls_client_cert is not None or self.grpc_tls_server_name):
            raise ValueError(f"{cert}, {key} and {PREFIX}GRPC_TLS_SERVER_NAME need {PREFIX}GRPC_TLS_CA")
        if self.grpc_tls_ca is not None and len(self.grpc_targets) > 1 and not self.grpc_tls_server_name:
            raise ValueError(
                f"several addresses in {PREFIX}GRPC_ADDRESS and TLS need {PREFIX}GRPC_TLS_SERVER_NAME, the name in the "
                f"certificate of every server"
            )
        return self

    @property
    def has_tokens(self) -> bool:
        """True if requests need an API token."""
        return bool(self.api_tokens) or self.api_tokens_file is not None

    @property
    def has_fixed_seeds(self) -> bool:
        """True if every choice after the first has a fixed seed when the request has no seed."""
        return self.deterministic or bool(self.recordings)

    @property
    def grpc_targets(self) -> tuple[str, ...]:
        """The targets in `grpc_address`."""
        return split_targets(self.grpc_address)

    @model_validator(mode="after")
    def _protect_public_address(self) -> Self:
        if not self.has_tokens and not is_loopback(split_address(self.http_address)[0]):
            raise ValueError(
                f"{PREFIX}HTTP_ADDRESS={self.http_address} is open to other machines and {PREFIX}API_TOKENS is empty: "
                f"set tokens there or in {PREFIX}API_TOKENS_FILE, or listen on 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _separate_ports(self) -> Self:
        port = split_address(self.http_address)[1]
        if port and self.binding_address and split_address(self.binding_address)[1] == port:
            raise ValueError(
                f"{PREFIX}BINDING_ADDRESS and {PREFIX}HTTP_ADDRESS have the port {port}: requests to the binding's port need "
                "no token, so it must be another one"
            )
        return self
