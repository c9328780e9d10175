"""The settings of batches, a part of the bridge's settings."""

from pydantic import Field

from tailrace_shared.settings_base import ServiceSettings, group


class BatchSettings(ServiceSettings):
    """The bounds of the batch queue, read from environment variables: TAILRACE_ plus the field's name in upper case."""

    batches_max: int = Field(
        default=100,
        ge=0,
        le=100_000,
        json_schema_extra=group("batches"),
        description="Largest number of batches (queueRequest) that the bridge keeps in memory, 0 to 100000, including "
        "finished ones. A further one replaces finished batches that were read, or is refused with 429. 0: no batches.",
    )
    batches_max_requests: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        json_schema_extra=group("batches"),
        description="Largest number of requests in a batch, 1 to 100000. More are refused with 413.",
    )
    batches_max_bytes: int = Field(
        default=64_000_000,
        ge=1_000,
        json_schema_extra=group("batches"),
        description="Largest size of all unfinished requests and all results of batches together, in bytes, at least 1000.",
    )
    batches_parallel: int = Field(
        default=4,
        ge=1,
        le=1_000,
        json_schema_extra=group("batches"),
        description="Largest number of batches' requests that run at the same time, 1 to 1000.",
    )
    batches_keep_seconds: float = Field(
        default=3_600,
        gt=0,
        le=604_800,
        allow_inf_nan=False,
        json_schema_extra=group("batches"),
        description="Time in seconds, above 0 to 604800, for which the results of a finished batch are kept.",
    )
    batches_timeout_seconds: float = Field(
        default=86_400,
        gt=0,
        le=604_800,
        allow_inf_nan=False,
        json_schema_extra=group("batches"),
        description="Longest time for a batch in seconds, above 0 to 604800. Then its unfinished requests fail with 408.",
    )
