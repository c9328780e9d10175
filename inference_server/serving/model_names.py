"""Turns the names of TAILRACE_MODELS and of the command line into catalog entries.

A name is a folder, a GGUF file, or a hub id such as `owner/name` or `owner/name:file.gguf`. `@revision` may follow
`owner/name`. The URL of a hub page is also accepted. Other names are those of Workers AI's catalogue, of the default
catalog or of the catalog in use. A short name (tailrace_shared/catalogue/short_names.py) is sufficient if it is unique.
Does not import torch and downloads nothing.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from inference_server.serving.catalog import CatalogEntry, OpenKey, read_catalog, repeated
from inference_server.serving.known_models import KnownModel, known_models
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.weights.source import Weights
from tailrace_shared.catalogue.short_names import Ambiguous, long_name
from tailrace_shared.config_errors import ConfigurationError

# Prefixes that other programs accept before a hub id.
_HUB_PREFIX = re.compile(r"^(https?://)?(hf\.co|huggingface\.co)/")
# The URL of a page on the hub, as a browser shows it: that of a repository, a revision, or a file.
_HUB_PAGE = re.compile(
    r"^(https?://)?(hf\.co|huggingface\.co)/(?P<hub>[^/]+/[^/:@?]+)"
    r"(/(blob|resolve|tree)/(?P<revision>[^/?]+)(/(?P<file>[^?]+))?)?/?(\?.*)?$"
)
_HUB_ID = re.compile(r"^(?P<hub>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?(:(?P<file>.+))?$")
_GGUF = ".gguf"
_PATH_STARTS = (".", "/", "~")
_LENGTHS: tuple[OpenKey, ...] = ("context_length", "sequence_length")
_ALL_KEYS: frozenset[OpenKey] = frozenset(("task", "precision", *_LENGTHS))
_MAX_LISTED = 8  # names in an error message


def configured_entries(settings: Settings) -> list[CatalogEntry]:
    """Return the entries of the models in TAILRACE_MODELS, or else those of the catalog.

    The settings `precision` and `max_context` are applied to them.

    Raises:
        ConfigurationError: A name or the catalog cannot be used.
    """
    if settings.models is None:
        entries = read_catalog(settings.catalog)
    else:
        names = [name.strip() for name in settings.models.split(",") if name.strip()]
        entries = entries_of(names, settings.catalog)
    return [_overridden(entry, settings) for entry in entries]


def entries_of(names: Sequence[str], catalog: Path = DEFAULT_CATALOG) -> list[CatalogEntry]:
    """Return an entry for each name, in their order. A repeated name counts once.

    Args:
        names: The names.
        catalog: The catalog file in use. Its names take precedence over those of Workers AI's catalogue, except in the
            default catalog.

    Raises:
        ConfigurationError: There are no names, a name matches no model or several, or two models have the same name.
            Also raised if no installed engine runs a named model.
    """
    if not names:
        raise ConfigurationError("TAILRACE_MODELS names no model")
    entries = [_entry(name, catalog) for name in dict.fromkeys(names)]
    if twice := repeated([entry.name for entry in entries]):
        raise ConfigurationError(
            f"two of the models have the name {twice}: serve one of them, or name both in a catalog"
        )
    return entries


def _overridden(entry: CatalogEntry, settings: Settings) -> CatalogEntry:
    """Return the entry with the precision and the window of the settings. Embedding models are returned unchanged."""
    if entry.task == "embedding":
        return entry
    if settings.precision is not None:
        entry = replace(entry, precision=settings.precision, open_keys=entry.open_keys - {"precision"})
    if settings.max_context is not None:
        entry = replace(entry, window_limit=min(entry.window_limit or settings.max_context, settings.max_context))
    return entry


def _entry(name: str, catalog: Path) -> CatalogEntry:
    name = _HUB_PAGE.sub(_named_like, name)
    path = Path(name).expanduser()
    if name.startswith(_PATH_STARTS) or name.endswith(_GGUF) and ":" not in name or _is_model(path):
        return _path_entry(name, path)
    own = {entry.name: entry for entry in read_catalog(catalog)}
    default = own if catalog == DEFAULT_CATALOG else {entry.name: entry for entry in read_catalog(DEFAULT_CATALOG)}
    known = known_models()
    if found := _listed(name, own if catalog != DEFAULT_CATALOG else {}):
        return own[found]
    if found := _listed(name, known):
        return _known_entry(known[found])
    if found := _listed(name, default):
        return default[found]
    if not name.startswith("@") and (match := _HUB_ID.match(_HUB_PREFIX.sub("", name))):
        return _hub_entry(match["hub"], match["revision"], match["file"])
    if path.is_dir():
        return _path_entry(name, path)
    raise _unknown(name, [*own, *known, *default])


def _named_like(page: re.Match[str]) -> str:
    """Return the model name for the URL of a hub page: `owner/name`, `@revision` unless it is main, and `:file`."""
    revision = f"@{page['revision']}" if page["revision"] not in (None, "main") else ""
    return f"{page['hub']}{revision}" + (f":{page['file']}" if page["file"] else "")


def _listed(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that `name` equals or abbreviates, or None. Raises ConfigurationError for several."""
    names = list(names)
    if name in names:
        return name
    if "/" in name and not name.startswith("@"):  # a hub id, even if it differs from a name only in the case of letters
        return None
    try:
        return long_name(name, names)
    except Ambiguous as error:
        raise ConfigurationError(str(error)) from None


def _path_entry(name: str, path: Path) -> CatalogEntry:
    """Return the entry of a folder or of a GGUF file. Raises ConfigurationError if there is no model at `path`."""
    if not path.exists():
        raise ConfigurationError(f"there is no file or folder {name}")
    if path.is_file() and path.suffix != _GGUF:
        raise ConfigurationError(f"{name} is not a GGUF file: name the folder that contains the model")
    files = sorted(path.glob(f"*{_GGUF}")) if path.is_dir() and not _has_config(path) else []
    if path.is_dir() and not _has_config(path) and len(files) != 1:
        listed = f" (name one of its files: {_shown([file.name for file in files])})" if files else ""
        raise ConfigurationError(f"the folder {name} has no config.json, so it contains no model{listed}")
    path = (files[0] if files else path).resolve()
    shown = path.stem if path.is_file() else path.name
    return CatalogEntry(name=shown, description="", weights=Weights(path=path), open_keys=_ALL_KEYS)


def _hub_entry(hub: str, revision: str | None, file: str | None) -> CatalogEntry:
    if file is not None and not file.endswith(_GGUF):
        raise ConfigurationError(
            f"{hub}:{file} does not name a GGUF file: write {hub}:NAME{_GGUF}, with the file's whole name"
        )
    weights = Weights(hub=hub, revision=revision, file=file)
    known = next((each for each in known_models().values() if each.hub == hub and each.runs_on == "tailrace"), None)
    entry = CatalogEntry(name=str(weights), description="", weights=weights, open_keys=_ALL_KEYS)
    if known is None:
        return entry
    return replace(
        entry,
        task=known.task,
        sampling=known.sampling,
        tool_format=known.tool_format,
        reasoning_format=known.reasoning_format,
        open_keys=_ALL_KEYS - {"task"},
    )


def _known_entry(known: KnownModel) -> CatalogEntry:
    """Return the entry of a model of Workers AI's catalogue. Raises ConfigurationError if no engine here runs it."""
    runs_here = known.runs_on == "tailrace" or known.runs_on == "vllm" and importlib.util.find_spec("vllm") is not None
    if known.hub is None or not runs_here:
        engine = " except with vLLM, which is not installed (docs/vllm.md)" if known.runs_on == "vllm" else ""
        small = f"; try the small model {known.small_stand_in} instead" if known.small_stand_in else ""
        raise ConfigurationError(
            f"{known.name} does not run here{engine}: {known.obstacle or 'it has no weights'}{small}"
        )
    is_embedding = known.task == "embedding"
    given: dict[OpenKey, int | None] = {"sequence_length": 0 if is_embedding else known.sequence_length}
    if is_embedding:
        given["context_length"] = known.context_length
    return CatalogEntry(
        name=known.name,
        description=known.description,
        weights=Weights(hub=known.hub),
        context_length=given.get("context_length") or 1,
        sequence_length=given["sequence_length"] or 0,
        tool_format=known.tool_format,
        reasoning_format=known.reasoning_format,
        shape=known.shape,
        engine="vllm" if known.runs_on == "vllm" else "tailrace",
        task=known.task,
        sampling=known.sampling,
        window_limit=None if is_embedding else known.context_length,
        open_keys=frozenset({"precision", *(key for key in _LENGTHS if given.get(key) is None)}),
    )


def _is_model(path: Path) -> bool:
    """Return True if `path` is a GGUF file, or a folder in transformers' format or with one GGUF file.

    If `path` has more than one part, any file and a folder with several GGUF files count too. `_path_entry` then
    refuses them with a precise error.
    """
    if path.is_file():
        return path.suffix == _GGUF or len(path.parts) > 1
    num_files = len(list(path.glob(f"*{_GGUF}")))
    return _has_config(path) or num_files == 1 or num_files > 1 and len(path.parts) > 1


def _has_config(path: Path) -> bool:
    return (path / "config.json").is_file()


def _unknown(name: str, names: Sequence[str]) -> ConfigurationError:
    endings = {each.rpartition("/")[2]: each for each in names}
    near = difflib.get_close_matches(name.rpartition("/")[2], endings, n=3, cutoff=0.5)
    hint = f" (similar names: {_shown([endings[each] for each in near])})" if near else ""
    return ConfigurationError(
        f"no model is called {name}{hint}: give a name of Workers AI's catalogue, a hub id such as Qwen/Qwen3-0.6B, "
        "a folder or a GGUF file"
    )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
