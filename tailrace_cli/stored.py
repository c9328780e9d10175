"""The commands pull, list and rm, for the models on this machine.

They need the server's packages, but no running server.
"""

import contextlib
import importlib.util
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tailrace_cli.errors import Failure
from tailrace_cli.output import size, table, write
from tailrace_cli.serving.serve import HOW_TO_INSTALL
from tailrace_shared.catalogue.short_names import Ambiguous, long_name
from tailrace_shared.config_errors import ConfigurationError

if TYPE_CHECKING:
    from inference_server.settings.server import Settings
    from inference_server.weights.fetching.inventory import StoredModel

_REQUIRED = ("pydantic_settings", "huggingface_hub")
_CLEAR_LINE = "\r\033[K"
# The digest at the beginning of the name of a packed model's folder. The precision follows.
_PACKED = re.compile(r"^[0-9a-f]+-")
_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"))


def pull(names: Sequence[str]) -> int:
    """Download models, with progress on stderr, and print a line for each of them.

    Args:
        names: Names that `tailrace serve` accepts.

    Returns:
        The exit code 0.

    Raises:
        Failure: A name is wrong, or a download failed; the models before it are complete.
    """
    settings = _settings()
    from inference_server.serving.model_names import entries_of
    from inference_server.weights.store import fetch

    show = _show_progress()
    try:
        for entry in entries_of(names, settings.catalog):
            for weights in filter(None, (entry.weights, entry.draft)):
                path = fetch(weights, settings.cache_dir, refresh=True, show=show)
                write(f"{entry.name}: {path} ({size(_bytes_of(path))})")
    except ConfigurationError as error:
        raise Failure(f"{error}.") from None
    return 0


def list_stored(*, as_json: bool) -> int:
    """Print the models on this machine with size and time of last use; with `as_json`, as a JSON array. Returns 0."""
    models = _stored(_settings())
    if as_json:
        write(json.dumps([_described(model) for model in models], indent=2))
        return 0
    forms: dict[str, list[StoredModel]] = {}
    for model in models:
        forms.setdefault(model.name, []).append(model)
    rows = [("NAME", "SIZE", "USED", "FORMS")]
    for name, group in forms.items():
        num_bytes, used = sum(each.num_bytes for each in group), max(each.last_used for each in group)
        rows.append((name, size(num_bytes), _ago(used), ", ".join(dict.fromkeys(map(_form, group)))))
    table(rows)
    return 0


def _form(model: "StoredModel") -> str:
    """Return the form of a stored model: "downloaded", "incomplete", "converted", or the precision if it is packed."""
    if not model.is_complete:
        return "incomplete"
    if model.kind == "packed":
        return _PACKED.sub("", model.path.name).partition(".")[0]
    return {"hub": "downloaded", "package": "downloaded", "converted": "converted"}[model.kind]


def remove(names: Sequence[str]) -> int:
    """Remove models and the forms that the server derived from them, and print a line for each.

    Args:
        names: Names as `tailrace list` prints them. A short name (tailrace_shared/catalogue/short_names.py) is
            sufficient if it is unique.

    Returns:
        The exit code 0.

    Raises:
        Failure: A model is not on this machine, or cannot be removed.
    """
    settings = _settings()
    from inference_server.weights.store import remove_stored

    for name in names:
        try:
            found = long_name(name, [model.name for model in _stored(settings)])
            freed = remove_stored(found or name, settings.cache_dir)
        except (Ambiguous, ConfigurationError) as error:
            raise Failure(f"{error}.") from None
        write(f"removed {found or name} ({size(freed)})")
    return 0


def _settings() -> "Settings":
    """Return the server's settings. Raises Failure if its packages are missing or a setting is wrong."""
    if missing := [name for name in _REQUIRED if importlib.util.find_spec(name) is None]:
        raise Failure(f"The inference server is not installed ({', '.join(missing)} missing). {HOW_TO_INSTALL}")
    from inference_server.settings.server import Settings

    try:
        return Settings.from_environment()
    except ConfigurationError as error:
        raise Failure(f"{error}.") from None


def _stored(settings: "Settings") -> "list[StoredModel]":
    from inference_server.weights.store import stored_models

    try:
        return stored_models(settings.cache_dir)
    except ConfigurationError as error:
        raise Failure(f"{error}.") from None


def _described(model: "StoredModel") -> dict[str, object]:
    return {
        "name": model.name,
        "kind": model.kind,
        "complete": model.is_complete,
        "form": _form(model),
        "bytes": model.num_bytes,
        "path": str(model.path),
        "last_used": model.last_used.isoformat(timespec="seconds"),
    }


def _ago(moment: datetime) -> str:
    """Return the time since a moment, in its largest unit: "3 days ago"."""
    seconds = max(0, int((datetime.now(moment.tzinfo) - moment).total_seconds()))
    for length, unit in _UNITS:
        if count := seconds // length:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def _bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def _show_progress() -> Callable[[str], None] | None:
    """Write the log to stderr. Return a function that shows a line of progress; None if stderr is not a terminal."""
    handler = _LinesAfterProgress()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("inference_server").setLevel(logging.INFO)
    return handler.show if sys.stderr.isatty() else None


class _LinesAfterProgress(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log lines to stderr. The next line replaces a line of progress."""

    def __init__(self) -> None:
        super().__init__()
        self._has_progress = False

    def show(self, text: str) -> None:
        """Write a line of progress, shortened to the width of the terminal."""
        with self.lock or contextlib.nullcontext():
            width = shutil.get_terminal_size().columns
            self.stream.write(f"{_CLEAR_LINE}{text[: width - 1]}")
            self.flush()
            self._has_progress = True

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line of the log."""
        if self._has_progress:
            self.stream.write(_CLEAR_LINE)
            self._has_progress = False
        super().emit(record)
