"""Makes the tables of docs/configuration.md from both services' Settings classes, one table for each group."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from http_bridge.settings import bridge
from inference_server.settings import server
from tailrace_shared.settings_base import Group
from tests.support.processes import ROOT

_SERVICES: dict[str, Any] = {"server": server.Settings, "bridge": bridge.Settings}
# Titles that differ from the group's name.
_TITLES: dict[str, str] = {"testing": "Tests"}


@dataclass
class Variable:
    """A variable, as the services that read it describe it."""

    defaults: list[str]
    readers: list[str]
    meanings: list[str]

    def row(self, name: str) -> str:
        """Return the variable's line of the table."""
        default, meaning = self._both(self.defaults), self._both(self.meanings)
        return f"| `TAILRACE_{name.upper()}` | {default} | {', '.join(self.readers)} | {meaning} |"

    def _both(self, texts: list[str]) -> str:
        return texts[0] if len(texts) == 1 else "; ".join(map("{}: {}".format, self.readers, texts))


def tables() -> str:
    """Return one heading and one table for each group in Markdown."""
    groups: dict[str, dict[str, Variable]] = defaultdict(dict)
    for service, settings in _SERVICES.items():
        for name, field in settings.model_fields.items():
            variable = groups[_group_of(field)].setdefault(name, Variable([], [], []))
            variable.readers.append(service)
            default = _default(name, field)
            variable.defaults += [default] if default not in variable.defaults else []
            meaning = (field.description or "").rstrip(".")
            variable.meanings += [meaning] if meaning not in variable.meanings else []
    parts = []
    for group in get_args(Group):
        title = _TITLES.get(group, group[0].upper() + group[1:])
        rows = [variable.row(name) for name, variable in groups.pop(group).items()]
        parts.append(
            "\n".join([f"## {title}\n", "| variable | default | read by | meaning |", "|---|---|---|---|", *rows])
        )
    assert not groups, f"no title for {list(groups)}"
    return "\n\n".join(parts)


def _group_of(field: FieldInfo) -> str:
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["group"])


def _default(name: str, field: FieldInfo) -> str:
    value = field.default
    if name == "cache_dir":
        return "`~/.cache/tailrace`"
    if value is None or value is PydanticUndefined or value in ((), ""):
        return "unset"
    if isinstance(value, Path):
        return f"`{value.relative_to(ROOT)}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
