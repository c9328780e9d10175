"""The settings of models: which models are loaded, how, and the replies that need none."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from inference_server.precision import Precision
from tailrace_shared.platforms import METAL_CLAUSE
from tailrace_shared.settings_base import ServiceSettings, group

RecordingsMode = Literal["replay", "record", "auto"]
DEFAULT_CATALOG = Path(__file__).parents[1] / "catalogs" / "default.toml"


def _default_cache_dir() -> Path:
    """Return the folder `tailrace` in the user's cache folder of the XDG specification."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tailrace"


class ModelSettings(ServiceSettings):
    """The models to load, their precision and device, and recorded replies in their place."""

    catalog: Path = Field(
        DEFAULT_CATALOG,
        description="Catalog file (TOML) with the models. Unset: the default catalog of the package.",
        json_schema_extra=group("models"),
    )
    models: str | None = Field(
        None,
        description="Models to serve instead of the catalog's, separated by commas: names of Workers AI's catalogue, hub ids "
        "(owner/name, owner/name:file.gguf), folders or GGUF files. Unset: every model of the catalog.",
        json_schema_extra=group("models"),
    )
    precision: Precision | None = Field(
        None,
        description="Precision of all models that generate text: float32, float16, bfloat16, bitsandbytes-int8 or int4. "
        "Unset: the catalog's, or chosen for device and memory.",
        json_schema_extra=group("models"),
    )
    max_context: int | None = Field(
        None,
        ge=2,
        description="Longest prompt and reply together, in tokens, from 2, of all models that generate text. Unset: the "
        "catalog's limits, or as much of the model's window as fits into the memory.",
        json_schema_extra=group("models"),
    )
    cache_dir: Path = Field(
        default_factory=_default_cache_dir,
        description="Folder for downloaded, converted and packed models.",
        json_schema_extra=group("models"),
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Device of the models: cpu, cuda or auto, which selects a GPU if there is one.",
        json_schema_extra=group("models"),
    )
    cpu_features: str | None = Field(
        None,
        description="Instruction set of the kernels for CPUs: amx, avx512-bf16, avx512-vnni, avx512, avx-vnni, avx2, "
        "neon-bf16, neon-dotprod, neon, or none for torch's operations. Unset: the best one of this CPU.",
        json_schema_extra=group("models"),
    )
    int8_threshold: float = Field(
        0.0,
        ge=0.0,
        description="Outlier threshold of bitsandbytes int8 on a GPU, from 0. Above 0, requests in one batch change each "
        "other's results.",
        json_schema_extra=group("models"),
    )
    batch_invariant: bool = Field(
        False,
        description="Compute logits that are bit-identical for any other requests in the batch, at a lower speed.",
        json_schema_extra=group("models"),
    )
    deterministic: bool = Field(
        False,
        description="Give equal requests byte-identical replies, for tests: a fixed seed where a request has none, "
        "TAILRACE_BATCH_INVARIANT=true and TAILRACE_PREFIX_CACHE=off, at a lower speed.",
        json_schema_extra=group("testing"),
    )
    recordings: Path | None = Field(
        None,
        description="Folder of recorded replies (docs/testing.md). Unset: no replies are recorded or replayed.",
        json_schema_extra=group("testing"),
    )
    recordings_mode: RecordingsMode = Field(
        "replay",
        description="Use of the recorded replies: replay (no model is loaded, and a request without a recording fails), "
        "record (every request, replacing its recording) or auto (replay, and record what is missing).",
        json_schema_extra=group("testing"),
    )

    @property
    def replays_only(self) -> bool:
        """True if every reply is a recorded one, so that no model is loaded."""
        return self.recordings is not None and self.recordings_mode == "replay"

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
