"""The keys of a catalog file: their types, and the combinations that are allowed. Does not import torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from inference_server.embedding.pooling_names import Pooling
from inference_server.precision import Precision
from inference_server.serving.engine_factory import EngineName
from inference_server.text.reasoning.formats import FormatName
from inference_server.text.tool_formats import ToolFormat
from tailrace_shared.request_fields import SAMPLING_FIELDS

# Forms of a model's REST replies, which the contract's Model.reply_shape reports.
ReplyShape = Literal["response", "choices", "responses"]
Task = Literal["generation", "embedding"]
Speculation = Literal["prompt-lookup", "off"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_Name = Annotated[str, Field(min_length=1)]


class Source(_Table):
    """The table `source`: exactly one of its forms."""

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


class SamplingTable(_Table):
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
    "speculation",
    "draft",
    "rope",
)


class ModelTable(_Table):
    """A `[[models]]` table."""

    name: _Name
    description: str = ""
    source: Source
    precision: Precision
    context_length: Annotated[int, Field(ge=1)]
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
    adapters: dict[_Name, _Name] | None = None
    speculation: Speculation | None = None
    draft: Source | None = None
    rope: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _has_arguments_of_its_engine(self) -> "ModelTable":
        if self.vllm is not None and self.engine != "vllm":
            raise ValueError('[models.vllm] is for a model with engine = "vllm"')
        if self.engine == "vllm" and (self.speculation or self.draft):
            key = "speculation" if self.speculation else "draft"
            raise ValueError(
                f'{key} is for a model with engine = "tailrace"; vLLM has speculative_config in [models.vllm]'
            )
        return self

    @model_validator(mode="after")
    def _has_keys_of_its_task(self) -> "ModelTable":
        if self.task == "generation" and self.sequence_length is None:
            raise ValueError("sequence_length is missing")
        wrong = _EMBEDDING_KEYS if self.task == "generation" else _GENERATION_KEYS
        if names := [name for name in wrong if name in self.model_fields_set]:
            raise ValueError(f'{names[0]} is not a key of a model with task = "{self.task}"')
        return self


class Document(_Table):
    """A whole catalog file."""

    models: Annotated[list[ModelTable], Field(min_length=1)]
