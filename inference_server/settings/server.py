"""Reads the inference server's settings from the environment (`TAILRACE_*`)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.config import JsonDict

from inference_server.precision import Precision
from tailrace_shared.addresses import split_address
from tailrace_shared.logs import LogFormat, LogLevel
from tailrace_shared.platforms import METAL_CLAUSE
from tailrace_shared.settings_base import ServiceSettings

# Headings of the list of settings in the documentation; the bridge's settings use the same names.
Group = Literal[
    "network",
    "TLS and tokens",
    "models",
    "scheduling",
    "cache",
    "limits",
    "timeouts",
    "observability",
    "compatibility",
    "testing",
]
RecordingsMode = Literal["replay", "record", "auto"]


@dataclass(frozen=True, slots=True)
class PrefillTokens:
    """Limits on the number of prompt tokens in a step.

    Attributes:
        chunk: Limit while many replies are streamed.
        idle: Limit while no reply is streamed; not below `chunk`.
    """

    chunk: int
    idle: int


# The keys are torch's device types. On a GPU, launching the kernels of a small chunk takes as long as computing
# hundreds of tokens.
_PREFILL_TOKENS = {"cpu": PrefillTokens(chunk=64, idle=512), "cuda": PrefillTokens(chunk=512, idle=2048)}

# Divisor of the number of slots, by device type: batch requests may use the quotient. On a CPU, each further sequence
# lengthens a step, and an interactive request waits for the end of the step in which it arrives.
_SLOTS_PER_BATCH_SLOT = {"cpu": 8, "cuda": 2}

DEFAULT_CATALOG = Path(__file__).parent / "catalogs" / "default.toml"


def _default_cache_dir() -> Path:
    """Return the folder `tailrace` in the user's cache folder of the XDG specification."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tailrace"


def _group(name: Group) -> JsonDict:
    """Return the field's metadata: its heading in the generated list of settings."""
    return {"group": name}


class Settings(ServiceSettings):
    """The server's settings, read from environment variables: TAILRACE_ plus the field's name in upper case."""

    grpc_address: str = Field(
        "localhost:50051",
        description="Address of the gRPC server, host:port; localhost is 127.0.0.1 and, with IPv6, ::1. Port 0 selects "
        "a free port.",
        json_schema_extra=_group("network"),
    )
    grpc_health_address: str | None = Field(
        None,
        description="Address, host:port, that serves the health service without TLS, for probes that do not support TLS. "
        "Unset: not served.",
        json_schema_extra=_group("network"),
    )
    grpc_connection_age_seconds: float = Field(
        300.0,
        ge=1,
        le=86_400,
        allow_inf_nan=False,
        description="Age of a connection in seconds, 1 to 86400, after which it is replaced, so that clients find new "
        "servers. Its replies are finished.",
        json_schema_extra=_group("network"),
    )
    grpc_tls_cert: Path | None = Field(
        None,
        description="File with the certificate chain (PEM) of the gRPC server. Set together with its key: clients must "
        "use TLS.",
        json_schema_extra=_group("TLS and tokens"),
    )
    grpc_tls_key: Path | None = Field(
        None,
        description="File with the private key (PEM, unencrypted) of the certificate.",
        json_schema_extra=_group("TLS and tokens"),
    )
    grpc_tls_client_ca: Path | None = Field(
        None,
        description="File of CA certificates (PEM). Set: gRPC clients must present a certificate that one of them signed.",
        json_schema_extra=_group("TLS and tokens"),
    )
    grpc_tokens_file: Path | None = Field(
        None,
        description="File of SHA-256 digests, one per line. Set: gRPC calls need a bearer token with one of these digests.",
        json_schema_extra=_group("TLS and tokens"),
    )
    catalog: Path = Field(
        DEFAULT_CATALOG,
        description="Catalog file (TOML) with the models. Unset: the default catalog of the package.",
        json_schema_extra=_group("models"),
    )
    models: str | None = Field(
        None,
        description="Models to serve instead of the catalog's, separated by commas: names of Workers AI's catalogue, hub ids "
        "(owner/name, owner/name:file.gguf), folders or GGUF files. Unset: every model of the catalog.",
        json_schema_extra=_group("models"),
    )
    precision: Precision | None = Field(
        None,
        description="Precision of all models that generate text: float32, float16, bfloat16, bitsandbytes-int8 or int4. "
        "Unset: the catalog's, or chosen for device and memory.",
        json_schema_extra=_group("models"),
    )
    max_context: int | None = Field(
        None,
        ge=2,
        description="Longest prompt and reply together, in tokens, from 2, of all models that generate text. Unset: the "
        "catalog's limits, or as much of the model's window as fits into the memory.",
        json_schema_extra=_group("models"),
    )
    cache_dir: Path = Field(
        default_factory=_default_cache_dir,
        description="Folder for downloaded, converted and packed models.",
        json_schema_extra=_group("models"),
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Device of the models: cpu, cuda or auto, which selects a GPU if there is one.",
        json_schema_extra=_group("models"),
    )
    cpu_features: str | None = Field(
        None,
        description="Instruction set of the kernels for CPUs: amx, avx512-bf16, avx512-vnni, avx512, avx-vnni, avx2, "
        "neon-bf16, neon-dotprod, neon, or none for torch's operations. Unset: the best one of this CPU.",
        json_schema_extra=_group("models"),
    )
    int8_threshold: float = Field(
        0.0,
        ge=0.0,
        description="Outlier threshold of bitsandbytes int8 on a GPU, from 0. Above 0, requests in one batch change each "
        "other's results.",
        json_schema_extra=_group("models"),
    )
    batch_invariant: bool = Field(
        False,
        description="Compute logits that are bit-identical for any other requests in the batch, at a lower speed.",
        json_schema_extra=_group("models"),
    )
    deterministic: bool = Field(
        False,
        description="Give equal requests byte-identical replies, for tests: a fixed seed where a request has none, "
        "TAILRACE_BATCH_INVARIANT=true and TAILRACE_PREFIX_CACHE=off, at a lower speed.",
        json_schema_extra=_group("testing"),
    )
    recordings: Path | None = Field(
        None,
        description="Folder of recorded replies (docs/testing.md). Unset: no replies are recorded or replayed.",
        json_schema_extra=_group("testing"),
    )
    recordings_mode: RecordingsMode = Field(
        "replay",
        description="Use of the recorded replies: replay (no model is loaded, and a request without a recording fails), "
        "record (every request, replacing its recording) or auto (replay, and record what is missing).",
        json_schema_extra=_group("testing"),
    )
    max_running_seqs: int = Field(
        64,
        ge=1,
        le=1024,
        description="Number of sequences that each engine runs at the same time (slots), 1 to 1024.",
        json_schema_extra=_group("scheduling"),
    )
    max_waiting_seqs: int = Field(
        256,
        ge=0,
        description="Number of requests that may wait for a slot of each engine, from 0. As many again may wait from "
        "accounts without any waiting or running request.",
        json_schema_extra=_group("scheduling"),
    )
    max_waiting_tokens: int = Field(
        524_288,
        ge=1,
        description="Number of prompt tokens that may wait for a slot of each engine, from 1.",
        json_schema_extra=_group("scheduling"),
    )
    max_account_seqs: int | None = Field(
        None,
        ge=1,
        description="Number of sequences of one account that each engine runs at the same time, from 1. Interactive and "
        "batch requests are counted separately. Unset: all slots.",
        json_schema_extra=_group("scheduling"),
    )
    max_batch_seqs: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Number of sequences of batch requests that each engine runs at the same time, 1 to 1024. Unset: an eighth "
        "of the slots on a CPU, half of them on a GPU.",
        json_schema_extra=_group("scheduling"),
    )
    prefill_chunk_tokens: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="Number of prompt tokens per step while many replies are streamed, 1 to 8192. The replies wait for them. "
        "Unset: 64 on a CPU, 512 on a GPU.",
        json_schema_extra=_group("scheduling"),
    )
    prefill_idle_tokens: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="Number of prompt tokens per step while no reply is streamed, 1 to 8192. Few streams: a number between "
        "both. Unset: 512 on a CPU, 2048 on a GPU.",
        json_schema_extra=_group("scheduling"),
    )
    kv_cache_tokens: int | None = Field(
        None,
        ge=1,
        description="Size of each engine's KV cache in tokens, from 1. Unset: all slots with full context, on a GPU as much "
        "as fits.",
        json_schema_extra=_group("cache"),
    )
    prefix_cache: Literal["shared", "account", "off"] = Field(
        "shared",
        description="Prompts that share cached keys and values of equal beginnings: shared (all), account (those of one "
        "account) or off (none).",
        json_schema_extra=_group("cache"),
    )
    prefix_cache_tokens: int = Field(
        32768,
        ge=0,
        description="Number of tokens of finished requests that each engine keeps for later prompts, from 0.",
        json_schema_extra=_group("cache"),
    )
    account_requests_per_minute: int | None = Field(
        None,
        ge=1,
        description="Number of requests per minute that one account may send to all models together, from 1. Unset: no "
        "limit.",
        json_schema_extra=_group("limits"),
    )
    max_message_bytes: int = Field(
        4 * 1024 * 1024,
        ge=1024,
        description="Largest gRPC request in bytes, from 1024.",
        json_schema_extra=_group("limits"),
    )
    max_messages: int = Field(
        1_024,
        ge=1,
        le=100_000,
        description="Largest number of messages in a conversation, 1 to 100000.",
        json_schema_extra=_group("limits"),
    )
    max_schema_depth: int = Field(
        32,
        ge=1,
        le=100,
        description="Deepest nesting of arrays and objects in a JSON Schema of a request, 1 to 100.",
        json_schema_extra=_group("limits"),
    )
    shutdown_grace_seconds: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Time in seconds, from 0, for running replies to finish after SIGTERM.",
        json_schema_extra=_group("timeouts"),
    )
    write_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time in seconds, up to 3600, after which a reply is aborted if its client does not read it.",
        json_schema_extra=_group("timeouts"),
    )
    stall_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time in seconds, up to 3600, without a step while requests wait. After it, health is NOT_SERVING.",
        json_schema_extra=_group("timeouts"),
    )
    stall_exit_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Further time in seconds, up to 86400, without a step. After it, the process exits with 1 for a restart.",
        json_schema_extra=_group("timeouts"),
    )
    metrics_address: str | None = Field(
        None,
        description="Address, host:port, that serves the server's Prometheus metrics. Unset: not served.",
        json_schema_extra=_group("observability"),
    )
    log_level: LogLevel = Field(
        "info",
        description="Least severity of log lines: debug, info, warning or error.",
        json_schema_extra=_group("observability"),
    )
    log_format: LogFormat = Field(
        "text",
        description="Format of log lines: text, or json with one object per line.",
        json_schema_extra=_group("observability"),
    )
    raw_control_tokens: bool = Field(
        False,
        description="Treat control tokens in the text of `raw` prompts as control tokens, for clients with a chat template "
        "of their own.",
        json_schema_extra=_group("compatibility"),
    )

    def prefill_tokens(self, device_type: str) -> PrefillTokens:
        """Return the limits on prompt tokens per step: the settings, or the defaults of `device_type` (cpu or cuda)."""
        default = _PREFILL_TOKENS[device_type]
        chunk = self.prefill_chunk_tokens or default.chunk
        return PrefillTokens(chunk, max(chunk, self.prefill_idle_tokens or default.idle))

    def batch_seqs(self, device_type: str) -> int:
        """Return the number of batch requests that may run at the same time: the setting, or the device type's default.

        `device_type` is "cpu" or "cuda".
        """
        default = self.max_running_seqs // _SLOTS_PER_BATCH_SLOT[device_type]
        return min(self.max_running_seqs, self.max_batch_seqs or max(1, default))

    @property
    def replays_only(self) -> bool:
        """True if every reply is a recorded one, so that no model is loaded."""
        return self.recordings is not None and self.recordings_mode == "replay"

    @field_validator("grpc_address", "grpc_health_address", "metrics_address")
    @classmethod
    def _has_port(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("device", mode="before")
    @classmethod
    def _is_supported(cls, value: object) -> object:
        if value == "mps":
            raise ValueError(METAL_CLAUSE)
        return value

    @field_validator("cpu_features")
    @classmethod
    def _is_available(cls, value: str | None) -> str | None:
        """Check the instruction set's name. kernels/isa/choice.py reads the environment variable itself."""
        if value is None or not value.strip():
            return None
        from inference_server.kernels.isa import choice

        name = value.strip().lower()
        choice.named(name)
        return name

    @model_validator(mode="after")
    def _has_whole_pair(self) -> Self:
        if (self.grpc_tls_cert is None) != (self.grpc_tls_key is None):
            raise ValueError("TAILRACE_GRPC_TLS_CERT and TAILRACE_GRPC_TLS_KEY belong together: set both or neither")
        if self.grpc_tls_client_ca is not None and self.grpc_tls_cert is None:
            raise ValueError("TAILRACE_GRPC_TLS_CLIENT_CA needs TAILRACE_GRPC_TLS_CERT and TAILRACE_GRPC_TLS_KEY")
        return self

    @model_validator(mode="after")
    def _is_deterministic(self) -> Self:
        """If `deterministic` is set, set `batch_invariant` and `prefix_cache` as deterministic replies need them.

        Raises:
            ValueError: Another setting contradicts `deterministic`.
        """
        if not self.deterministic:
            return self
        given = self.model_fields_set
        if "batch_invariant" in given and not self.batch_invariant:
            raise ValueError("TAILRACE_DETERMINISTIC needs TAILRACE_BATCH_INVARIANT: unset one of them")
        if "prefix_cache" in given and self.prefix_cache != "off":
            raise ValueError(
                "TAILRACE_DETERMINISTIC needs TAILRACE_PREFIX_CACHE=off, because replies count cached tokens: unset one of them"
            )
        if self.int8_threshold:
            raise ValueError("TAILRACE_DETERMINISTIC excludes TAILRACE_INT8_THRESHOLD above 0: unset one of them")
        # The settings are frozen, but their own validation may set fields in this way.
        object.__setattr__(self, "batch_invariant", True)
        object.__setattr__(self, "prefix_cache", "off")
        return self
