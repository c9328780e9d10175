"""The settings of an engine: its slots, its wait queue, the tokens of a step and the KV cache."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from tailrace_shared.settings_base import ServiceSettings, group


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


class SchedulingSettings(ServiceSettings):
    """Bounds of each engine: slots, waiting requests, tokens of a step and tokens in the KV cache."""

    max_running_seqs: int = Field(
        64,
        ge=1,
        le=1024,
        description="Number of sequences that each engine runs at the same time (slots), 1 to 1024.",
        json_schema_extra=group("scheduling"),
    )
    max_waiting_seqs: int = Field(
        256,
        ge=0,
        description="Number of requests that may wait for a slot of each engine, from 0. As many again may wait from "
        "accounts without any waiting or running request.",
        json_schema_extra=group("scheduling"),
    )
    max_waiting_tokens: int = Field(
        524_288,
        ge=1,
        description="Number of prompt tokens that may wait for a slot of each engine, from 1.",
        json_schema_extra=group("scheduling"),
    )
    max_account_seqs: int | None = Field(
        None,
        ge=1,
        description="Number of sequences of one account that each engine runs at the same time, from 1. Interactive and "
        "batch requests are counted separately. Unset: all slots.",
        json_schema_extra=group("scheduling"),
    )
    max_batch_seqs: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Number of sequences of batch requests that each engine runs at the same time, 1 to 1024. Unset: an eighth "
        "of the slots on a CPU, half of them on a GPU.",
        json_schema_extra=group("scheduling"),
    )
    prefill_chunk_tokens: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="Number of prompt tokens per step while many replies are streamed, 1 to 8192. The replies wait for them. "
        "Unset: 64 on a CPU, 512 on a GPU.",
        json_schema_extra=group("scheduling"),
    )
    prefill_idle_tokens: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="Number of prompt tokens per step while no reply is streamed, 1 to 8192. Few streams: a number between "
        "both. Unset: 512 on a CPU, 2048 on a GPU.",
        json_schema_extra=group("scheduling"),
    )
    kv_cache_tokens: int | None = Field(
        None,
        ge=1,
        description="Size of each engine's KV cache in tokens, from 1. Unset: all slots with full context, on a GPU as much "
        "as fits.",
        json_schema_extra=group("cache"),
    )
    prefix_cache: Literal["shared", "account", "off"] = Field(
        "shared",
        description="Prompts that share cached keys and values of equal beginnings: shared (all), account (those of one "
        "account) or off (none).",
        json_schema_extra=group("cache"),
    )
    prefix_cache_tokens: int = Field(
        32768,
        ge=0,
        description="Number of tokens of finished requests that each engine keeps for later prompts, from 0.",
        json_schema_extra=group("cache"),
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
