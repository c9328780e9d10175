"""Reads the inference server's settings from the environment (`TAILRACE_*`)."""

from typing import Self

from pydantic import Field, model_validator

from inference_server.settings.connections import Address, ConnectionSettings
from inference_server.settings.models import ModelSettings
from inference_server.settings.scheduling import SchedulingSettings
from tailrace_shared.logs import LogFormat, LogLevel
from tailrace_shared.settings_base import group


# pydantic collects the fields of the last class first.
class Settings(SchedulingSettings, ModelSettings, ConnectionSettings):
    """The server's settings, read from environment variables: TAILRACE_ plus the field's name in upper case."""

    account_requests_per_minute: int | None = Field(
        None,
        ge=1,
        description="Number of requests per minute that one account may send to all models together, from 1. Unset: no "
        "limit.",
        json_schema_extra=group("limits"),
    )
    max_message_bytes: int = Field(
        4 * 1024 * 1024,
        ge=1024,
        description="Largest gRPC request in bytes, from 1024.",
        json_schema_extra=group("limits"),
    )
    max_messages: int = Field(
        1_024,
        ge=1,
        le=100_000,
        description="Largest number of messages in a conversation, 1 to 100000.",
        json_schema_extra=group("limits"),
    )
    max_schema_depth: int = Field(
        32,
        ge=1,
        le=100,
        description="Deepest nesting of arrays and objects in a JSON Schema of a request, 1 to 100.",
        json_schema_extra=group("limits"),
    )
    shutdown_grace_seconds: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Time in seconds, from 0, for running replies to finish after SIGTERM.",
        json_schema_extra=group("timeouts"),
    )
    write_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time in seconds, up to 3600, after which a reply is aborted if its client does not read it.",
        json_schema_extra=group("timeouts"),
    )
    stall_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time in seconds, up to 3600, without a step while requests wait. After it, health is NOT_SERVING.",
        json_schema_extra=group("timeouts"),
    )
    stall_exit_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Further time in seconds, up to 86400, without a step. After it, the process exits with 1 for a restart.",
        json_schema_extra=group("timeouts"),
    )
    metrics_address: Address | None = Field(
        None,
        description="Address, host:port, that serves the server's Prometheus metrics. Unset: not served.",
        json_schema_extra=group("observability"),
    )
    log_level: LogLevel = Field(
        "info",
        description="Least severity of log lines: debug, info, warning or error.",
        json_schema_extra=group("observability"),
    )
    log_format: LogFormat = Field(
        "text",
        description="Format of log lines: text, or json with one object per line.",
        json_schema_extra=group("observability"),
    )
    raw_control_tokens: bool = Field(
        False,
        description="Treat control tokens in the text of `raw` prompts as control tokens, for clients with a chat template "
        "of their own.",
        json_schema_extra=group("compatibility"),
    )

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
