"""The inference server's settings, read from the environment (`TAILRACE_*`) in one place."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from inference_server.errors import ConfigurationError

DEFAULT_CATALOG = Path(__file__).parent / "catalogs" / "default.toml"


def _default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tailrace"


class Settings(BaseSettings):
    """Every setting of the inference server; README.md lists them, and a test holds the list against this class."""

    model_config = SettingsConfigDict(env_prefix="TAILRACE_", env_ignore_empty=True, frozen=True, extra="ignore")

    grpc_address: str = Field(
        "127.0.0.1:50051", description="Host and port of the gRPC server; port 0 takes a free one"
    )
    catalog: Path = Field(DEFAULT_CATALOG, description="Catalog file (TOML) that names the models")
    cache_dir: Path = Field(default_factory=_default_cache_dir, description="Folder for converted and packed models")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; `auto` takes a GPU if there is one"
    )
    max_running_seqs: int = Field(64, ge=1, le=1024, description="Sequences decoded together, for each loaded model")
    max_waiting_seqs: int = Field(256, ge=0, description="Requests that may wait for a slot, for each loaded model")
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
    metrics_address: str = Field(
        "", description="Where Prometheus finds the server's metrics, host:port; empty: nowhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is logged")

    @field_validator("grpc_address", "metrics_address")
    @classmethod
    def _has_port(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.field_name == "metrics_address":
            return value
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must be host:port, for example 127.0.0.1:50051")
        return value

    @classmethod
    def from_environment(cls) -> "Settings":
        """Raises ConfigurationError, one sentence for each wrong variable."""
        try:
            return cls()
        except ValidationError as error:
            raise ConfigurationError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """The wrong environment variables of a pydantic error, a sentence each."""
    problems = []
    for detail in error.errors():
        name = "TAILRACE_" + "_".join(str(part) for part in detail["loc"]).upper()
        message = detail["msg"].removeprefix("Value error, ")
        problems.append(f"{name}={detail['input']!s}: {message[0].lower()}{message[1:]}")
    return "; ".join(problems)
