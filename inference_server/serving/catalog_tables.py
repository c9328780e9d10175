"""The keys of a catalog file: their types, and the combinations that are allowed. Does not import torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from inference_server.embedding.pooling_names import Pooling
from inference_server.precision import Precision
from inference_server.serving.engine_factory import EngineName
from inference_server.text.reasoning.formats import FormatName
from inference_server.text.tool_formats import ToolFormat
from tailrace_shared.request_fields import MAX_NAME_LENGTH, SAMPLING_FIELDS

# Formats of a model's REST replies, which Model.reply_shape of inference.proto reports.
ReplyShape = Literal["response", "choices", "responses"]
Task = Literal["generation", "embedding"]
Speculation = Literal["prompt-lookup", "off"]


class StrictTable(BaseModel):
    """A table that rejects unknown keys and values of the wrong type."""

    model_config = ConfigDict(extra="forbid", strict=True)


_Name = Annotated[str, Field(min_length=1)]
_AdapterName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]


class Source(StrictTable):
    """The table `source`, which must have exactly one of its forms."""

    hub: _Name | None = None
    revision: _Name | None = None
    path: _Name | None = None
    gguf: _Name | None = None
    package: _Name | None = None
    file: _Name | None = None

    @model_validator(mode="after")
    def _is_one_form(self) -> "Source":
        keys = {key for key, value in self if value is not None}
        forms = ({"hub"}, {"path"}, {"gguf"}, {"package", "file"})
        if keys not in forms and not {"hub"} < keys <= {"hub", "revision", "file"}:
            raise ValueError(
                "must be one of {hub}, {hub, file}, {path}, {gguf}, {package, file}; hub may have a revision"
            )
        if self.hub and self.file and not self.file.endswith(".gguf"):
            raise ValueError("file must name a file of the repository that ends in .gguf")
        if self.gguf and not self.gguf.endswith(".gguf"):
            raise ValueError("gguf must name a file that ends in .gguf")
        return self


class SamplingTable(StrictTable):
    """The table `[models.sampling]`: values for requests that do not set these parameters (see SAMPLING_FIELDS)."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

    @model_validator(mode="after")
    def _is_in_range(self) -> "SamplingTable":
        ranges = {each.name: each.grpc for each in SAMPLING_FIELDS}
        for name, value in self:
            if value is not None and value not in ranges[name]:
                raise ValueError(f"{name} must be {ranges[name]}")
        return self


# Parameters of rotary positions that each kind of scaling needs, by transformers' names.
_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("factor", "short_factor", "long_factor", "original_max_position_embeddings"),
}


class RopeTable(StrictTable):
    """The table `[models.rope]`: the scaling of rotary positions, by transformers' names."""

    rope_type: Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"]
    factor: Annotated[float, Field(ge=1.0)] | None = None
    original_max_position_embeddings: Annotated[int, Field(ge=1)] | None = None
    rope_theta: Annotated[float, Field(gt=0.0)] | None = None
    attention_factor: Annotated[float, Field(gt=0.0)] | None = None
    beta_fast: Annotated[float, Field(gt=0.0)] | None = None
    beta_slow: Annotated[float, Field(gt=0.0)] | None = None
    mscale: Annotated[float, Field(gt=0.0)] | None = None
    mscale_all_dim: Annotated[float, Field(gt=0.0)] | None = None
    truncate: bool | None = None
    low_freq_factor: Annotated[float, Field(gt=0.0)] | None = None
    high_freq_factor: Annotated[float, Field(gt=0.0)] | None = None
    short_factor: Annotated[list[float], Field(min_length=1)] | None = None
    long_factor: Annotated[list[float], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_the_keys_of_its_type(self) -> "RopeTable":
        needed = _ROPE_KEYS[self.rope_type]
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f'rope_type = "{self.rope_type}" needs {missing[0]}')
        optional = {"rope_type", "rope_theta", "original_max_position_embeddings"}
        if self.rope_type == "yarn":
            optional |= {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
        if self.rope_type in ("yarn", "longrope"):
            optional |= {"attention_factor"}
        if wrong := sorted(self.model_fields_set - optional - set(needed)):
            raise ValueError(f'{wrong[0]} is not a parameter of rope_type = "{self.rope_type}"')
        if self.low_freq_factor and self.high_freq_factor and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be smaller than high_freq_factor")
        return self


_EMBEDDING_KEYS = ("pooling", "normalize", "optional")
_GENERATION_KEYS = (
    "sequence_length",
    "chat_template",
    "tool_format",
    "reasoning_format",
    "shape",
    "engine",
    "vllm",
    "sampling",
    "adapters",
    "adapters_folder",
    "speculation",
    "draft",
    "rope",
)


class ModelTable(StrictTable):
    """A `[[models]]` table, which declares one model. catalogs/default.toml explains the keys."""

    name: _Name
    description: str = ""
    source: Source
    precision: Precision | None = None
    context_length: Annotated[int, Field(ge=1)] | None = None
    sequence_length: Annotated[int, Field(ge=1)] | None = None
    chat_template: str | None = None
    stands_in: bool = False
    tool_format: ToolFormat | None = None
    reasoning_format: FormatName | Literal["none"] | None = None
    shape: ReplyShape = "response"
    engine: EngineName = "tailrace"
    vllm: dict[str, JsonValue] | None = None
    task: Task = "generation"
    pooling: Pooling | None = None
    normalize: bool | None = None
    optional: bool = False
    sampling: SamplingTable | None = None
    adapters: dict[_AdapterName, _Name] | None = None
    adapters_folder: _Name | None = None
    speculation: Speculation | None = None
    draft: Source | None = None
    rope: RopeTable | None = None

    @model_validator(mode="after")
    def _has_arguments_of_its_engine(self) -> "ModelTable":
        if self.vllm is not None and self.engine != "vllm":
            raise ValueError('[models.vllm] is for a model with engine = "vllm"')
        if self.rope is not None and self.engine == "vllm":
            raise ValueError('[models.rope] is for engine = "tailrace": for vLLM, set hf_overrides in [models.vllm]')
        if self.engine == "vllm" and (self.speculation or self.draft):
            key = "speculation" if self.speculation else "draft"
            raise ValueError(
                f'{key} is for a model with engine = "tailrace"; vLLM has speculative_config in [models.vllm]'
            )
        return self

    @model_validator(mode="after")
    def _has_keys_of_its_task(self) -> "ModelTable":
        wrong = _EMBEDDING_KEYS if self.task == "generation" else _GENERATION_KEYS
        if names := [name for name in wrong if name in self.model_fields_set]:
            raise ValueError(f'{names[0]} is not a key of a model with task = "{self.task}"')
        return self


class Document(StrictTable):
    """A whole catalog file, with at least one `[[models]]` table."""

    models: Annotated[list[ModelTable], Field(min_length=1)]
