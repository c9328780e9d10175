"""Every setting of the bridge, read once from the environment. Knows nothing of what the settings are used for."""

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from http_bridge.protocol.profiles import ProfileName
from tailrace_shared.addresses import is_loopback, split_address
from tailrace_shared.logs import LogFormat, LogLevel
from tailrace_shared.settings_base import ServiceSettings
from tailrace_shared.variables import PREFIX

# Targets in gRPC's own notation are passed on as they are.
GRPC_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:")
# A name, an IP address, or `.name` for every name below it; `*` for any.
_HOST = re.compile(r"\*|\.?[\w-]+(\.[\w-]+)*\.?|\[?[0-9a-fA-F]*:[0-9a-fA-F:.]+\]?", re.ASCII)
_Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Settings(ServiceSettings):
    """The bridge's settings; each comes from the variable TAILRACE_ plus its name in upper case."""

    secrets = frozenset({"api_tokens", "grpc_token"})

    http_address: str = Field(
        default="127.0.0.1:8787",
        description="Where the bridge listens, host:port; port 0 takes a free one. Beyond loopback needs API tokens.",
    )
    grpc_address: str = Field(
        default="127.0.0.1:50051",
        description="The inference server, host:port. Several, separated by commas or behind one name, share the load; "
        "names are looked up every 2 s. Targets in gRPC's notation, such as unix:path, are left to gRPC.",
    )
    grpc_tls_ca: Path | None = Field(
        default=None,
        description="CA certificates (PEM) that the inference server's certificate is checked against. Set: TLS is used.",
    )
    grpc_tls_client_cert: Path | None = Field(
        default=None,
        description="Certificate chain (PEM) that the bridge shows the inference server, if it asks for one.",
    )
    grpc_tls_client_key: Path | None = Field(
        default=None, description="Private key (PEM, unencrypted) of that certificate of the bridge."
    )
    grpc_tls_server_name: str = Field(
        default="", description="Name that the inference server's certificate must hold. Empty: the address's host."
    )
    grpc_token: str = Field(
        default="",
        repr=False,
        description="Bearer token that goes with each call to the inference server. Empty: none.",
    )
    api_tokens: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        repr=False,
        description="Bearer tokens that are let in for every account, separated by commas. Empty, and no file of tokens: "
        "anyone is let in, with any token or none.",
    )
    api_tokens_file: Path | None = Field(
        default=None,
        description="File of more tokens, each for one account or *: lines of an account and the token's SHA-256 in "
        "hexadecimal digits, # for comments; read again when it changes.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Host names, separated by commas, that requests may name besides localhost and loopback addresses. "
        "They count only without API tokens; with tokens any name is accepted. * accepts any name.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins whose pages may call the bridge, separated by commas, or *. Empty: none.",
    )
    binding_address: str = Field(
        default="",
        description="Where the Worker binding is served without a token, host:port on loopback. Empty: nowhere.",
    )
    profile: ProfileName = Field(
        default="default",
        description="Which Workers AI is spoken: default, 2023-11 or 2026; the header tailrace-profile overrules it.",
    )
    stream_padding: bool = Field(
        default=False,
        description="Adds random text as `p` to each event of a stream, so that packet sizes do not give away tokens.",
    )
    max_body_bytes: int = Field(
        default=4_000_000,
        ge=1_000,
        # A gRPC message holds 4 MiB unless the server says otherwise; the rest is room for what goes along.
        le=4_000_000,
        description="Longest request body in bytes, 1000 to 4000000; a longer one is refused with 413.",
    )
    max_messages: int = Field(
        default=1_024, ge=1, le=100_000, description="Most messages of a conversation, 1 to 100000; more are refused."
    )
    max_schema_depth: int = Field(
        default=32,
        ge=1,
        # Beyond it the whole body would be refused as too deep.
        le=100,
        description="How deep arrays and objects may be nested in a JSON Schema of a request, 1 to 100; 128 in a body.",
    )
    max_connections: int = Field(
        default=2_048,
        ge=1,
        le=1_000_000,
        description="Most connections at once, 1 to 1000000, health checks and idle ones included; one more gets 503.",
    )
    max_header_bytes: int = Field(
        default=65_536,
        ge=1_024,
        le=1_048_576,
        description="Longest request line and headers together in bytes, 1024 to 1048576; then 400.",
    )
    header_timeout_seconds: _Seconds = Field(
        default=10,
        description="Longest time for the headers of a request in seconds, above 0 to 86400, from connecting or from "
        "the first byte; then 408.",
    )
    body_timeout_seconds: _Seconds = Field(
        default=30, description="Longest time for the body of a request in seconds, above 0 to 86400; then 408."
    )
    idle_timeout_seconds: _Seconds = Field(
        default=30, description="How long a connection is kept between two requests in seconds, above 0 to 86400."
    )
    write_timeout_seconds: _Seconds = Field(
        default=30,
        description="How long a client that does not read may hold up its reply in seconds, above 0 to 86400; then the "
        "connection is cut and the run cancelled.",
    )
    request_timeout_seconds: _Seconds = Field(
        default=600,
        description="Longest time for one request in seconds, above 0 to 86400, waiting included; then 408.",
    )
    http_shutdown_grace_seconds: int = Field(
        default=30,
        ge=0,
        le=3_600,
        description="How long running streams may go on after SIGTERM, in whole seconds, 0 to 3600.",
    )
    http_metrics_address: str = Field(
        default="", description="Where Prometheus finds the bridge's metrics, host:port. Empty: nowhere."
    )
    log_level: LogLevel = Field(
        default="info", description="Least severity that is logged: debug, info, warning or error."
    )
    log_format: LogFormat = Field(
        default="text", description="How the log is written: lines of text, or a JSON object a line."
    )

    @field_validator("api_tokens", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("http_address")
    @classmethod
    def _check_http_address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("http_metrics_address")
    @classmethod
    def _check_metrics_address(cls, value: str) -> str:
        if value:
            split_address(value)
        return value

    @field_validator("binding_address")
    @classmethod
    def _check_binding_address(cls, value: str) -> str:
        if value and not is_loopback(split_address(value)[0]):
            raise ValueError("it is served without a token, so it must be on loopback, for example 127.0.0.1:8789")
        return value

    @field_validator("grpc_address")
    @classmethod
    def _check_grpc_address(cls, value: str) -> str:
        targets = split_targets(value)
        for target in targets:
            if not target.startswith(GRPC_SCHEMES):
                if split_address(target)[1] == 0:
                    raise ValueError("port 0 cannot be called")
            elif len(targets) > 1:
                raise ValueError(f"{target} is in gRPC's notation, which can only stand alone")
        if not targets:
            raise ValueError("there is no address in it")
        return value

    @field_validator("api_tokens")
    @classmethod
    def _check_tokens(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(token.isascii() and token.isprintable() and " " not in token for token in value):
            raise ValueError("a token may hold printable ASCII characters only, and no space")
        return value

    @field_validator("grpc_token")
    @classmethod
    def _check_grpc_token(cls, value: str) -> str:
        cls._check_tokens((value,))
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            scheme, separator, host = origin.partition("://")
            if origin != "*" and not (scheme and separator and host and "/" not in host):
                raise ValueError(f"{origin!r} is no origin; one looks like https://example.com")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"{host!r} is not a host name; write it like tailrace.example, .example.com or 10.0.0.5, without "
                    "scheme and port"
                )
        return value

    @model_validator(mode="after")
    def _check_tls_pair(self) -> Self:
        cert, key = f"{PREFIX}GRPC_TLS_CLIENT_CERT", f"{PREFIX}GRPC_TLS_CLIENT_KEY"
        if (self.grpc_tls_client_cert is None) != (self.grpc_tls_client_key is None):
            raise ValueError(f"{cert} and {key} need each other: set both or neither")
        if self.grpc_tls_ca is None and (self.grpc_tls_client_cert is not None or self.grpc_tls_server_name):
            raise ValueError(f"{cert}, {key} and {PREFIX}GRPC_TLS_SERVER_NAME need {PREFIX}GRPC_TLS_CA")
        if self.grpc_tls_ca is not None and len(self.grpc_targets) > 1 and not self.grpc_tls_server_name:
            raise ValueError(
                f"several addresses in {PREFIX}GRPC_ADDRESS and TLS need {PREFIX}GRPC_TLS_SERVER_NAME: the name that the "
                f"certificate of each must hold"
            )
        return self

    @property
    def has_tokens(self) -> bool:
        """True if requests need an API token."""
        return bool(self.api_tokens) or self.api_tokens_file is not None

    @property
    def grpc_targets(self) -> tuple[str, ...]:
        """The parts of `grpc_address`."""
        return split_targets(self.grpc_address)

    @model_validator(mode="after")
    def _protect_public_address(self) -> Self:
        if not self.has_tokens and not is_loopback(split_address(self.http_address)[0]):
            raise ValueError(
                f"{PREFIX}HTTP_ADDRESS={self.http_address} is open to other machines and {PREFIX}API_TOKENS is empty: "
                f"set tokens there or in {PREFIX}API_TOKENS_FILE, or listen on 127.0.0.1"
            )
        return self


def split_targets(text: str) -> tuple[str, ...]:
    """The addresses of a list with commas; in gRPC's own notation these may mean something else."""
    parts = [part.strip().removeprefix("dns:///") for part in text.split(",")]
    if parts[0].startswith(GRPC_SCHEMES):
        return (text,)
    return tuple(part for part in parts if part)
