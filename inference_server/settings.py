"""The inference server's settings, read from the environment (`TAILRACE_*`) in one place."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tailrace_shared.addresses import split_address
from tailrace_shared.logs import LogFormat, LogLevel
from tailrace_shared.settings_base import ServiceSettings

DEFAULT_CATALOG = Path(__file__).parent / "catalogs" / "default.toml"


def _default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tailrace"


class Settings(ServiceSettings):
    """Every setting of the inference server; README.md lists them, and a test holds the list against this class."""

    grpc_address: str = Field(
        "127.0.0.1:50051", description="Host and port of the gRPC server; port 0 takes a free one"
    )
    grpc_health_address: str | None = Field(
        None,
        description="Where health alone is served without TLS, host:port, for probes that know no TLS; unset: nowhere",
    )
    grpc_tls_cert: Path | None = Field(
        None, description="Certificate chain (PEM) that the gRPC server shows; with its key, callers must use TLS"
    )
    grpc_tls_key: Path | None = Field(None, description="Private key (PEM, unencrypted) of that certificate")
    grpc_tls_client_ca: Path | None = Field(
        None, description="CA certificates (PEM); set: gRPC clients must show a certificate that one of them signed"
    )
    grpc_tokens_file: Path | None = Field(
        None,
        description="File of SHA-256 digests, one a line; set: gRPC calls need a bearer token that has one of them",
    )
    grpc_connection_age_seconds: float = Field(
        300.0,
        ge=1,
        le=86_400,
        allow_inf_nan=False,
        description="Age at which a connection is replaced, so that clients look for new servers; its replies are finished",
    )
    catalog: Path = Field(DEFAULT_CATALOG, description="Catalog file (TOML) that names the models")
    cache_dir: Path = Field(default_factory=_default_cache_dir, description="Folder for converted and packed models")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; `auto` takes a GPU if there is one"
    )
    max_running_seqs: int = Field(64, ge=1, le=1024, description="Sequences decoded together, for each loaded model")
    max_waiting_seqs: int = Field(
        256,
        ge=0,
        description="Requests that may wait for a slot, for each loaded model; as many again of accounts that have none",
    )
    max_waiting_tokens: int = Field(
        524_288, ge=1, description="Prompt tokens that may wait for a slot, for each loaded model"
    )
    max_account_seqs: int | None = Field(
        None, ge=1, description="Sequences of one account decoded together, for each loaded model; unset: all slots"
    )
    account_requests_per_minute: int | None = Field(
        None, ge=1, description="Requests that an account may send in a minute, all models together; unset: any number"
    )
    kv_cache_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of KV cache, for each loaded model; unset: full windows, on a GPU as many as fit",
    )
    prefix_cache: Literal["shared", "account", "off"] = Field(
        "shared",
        description="Whether prompts that begin alike share what is computed: all, those of one account, or none",
    )
    prefix_cache_tokens: int = Field(
        32768,
        ge=0,
        description="Tokens of finished requests that are kept for later prompts, for each loaded model",
    )
    prefill_chunk_tokens: int = Field(
        64,
        ge=1,
        le=8192,
        description="Prompt tokens computed in one step while many replies stream, which wait so long",
    )
    prefill_idle_tokens: int = Field(
        512,
        ge=1,
        le=8192,
        description="Prompt tokens computed in one step while no reply streams; between both while few do",
    )
    batch_invariant: bool = Field(
        False,
        description="Bit-identical logits whoever else is in the batch, at the price of speed",
    )
    int8_threshold: float = Field(
        0.0,
        ge=0.0,
        description="Outlier threshold of bitsandbytes int8 on a GPU; above 0, requests in one batch change each other",
    )
    raw_control_tokens: bool = Field(
        False,
        description="Let control tokens written in `raw` prompts act as such, for callers that bring their own template",
    )
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="Longest gRPC request, in bytes")
    max_messages: int = Field(1_024, ge=1, le=100_000, description="Most turns of a conversation")
    max_schema_depth: int = Field(
        32, ge=1, le=100, description="How deep arrays and objects may be nested in a JSON Schema of a request"
    )
    shutdown_grace_seconds: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Time that running replies get to finish on SIGTERM"
    )
    write_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time after which a reply is given up that its client does not read",
    )
    stall_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time without a step while work waits after which health says NOT_SERVING",
    )
    stall_exit_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Further time without a step after which the process ends with 1, to be started anew",
    )
    metrics_address: str | None = Field(
        None, description="Where Prometheus finds the server's metrics, host:port; unset: nowhere"
    )
    log_level: LogLevel = Field("info", description="How much is logged")
    log_format: LogFormat = Field("text", description="How the log is written: lines of text, or a JSON object a line")

    @field_validator("grpc_address", "grpc_health_address", "metrics_address")
    @classmethod
    def _has_port(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @model_validator(mode="after")
    def _has_whole_pair(self) -> Self:
        if (self.grpc_tls_cert is None) != (self.grpc_tls_key is None):
            raise ValueError("TAILRACE_GRPC_TLS_CERT and TAILRACE_GRPC_TLS_KEY need each other: set both or neither")
        if self.grpc_tls_client_ca is not None and self.grpc_tls_cert is None:
            raise ValueError("TAILRACE_GRPC_TLS_CLIENT_CA needs TAILRACE_GRPC_TLS_CERT and TAILRACE_GRPC_TLS_KEY")
        return self
