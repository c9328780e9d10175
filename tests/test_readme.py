"""The README's table of settings is that of the code; `python -m tests.test_readme` writes it anew."""

from pathlib import Path

from pydantic_core import PydanticUndefined

import http_bridge.settings
import inference_server.settings

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- settings: tests/test_readme.py holds this table against the code -->", "<!-- /settings -->"
READERS = {"server": inference_server.settings.Settings, "bridge": http_bridge.settings.Settings}


def table() -> str:
    rows: dict[str, tuple[str, list[str], list[str]]] = {}
    for reader, settings in READERS.items():
        for name, field in settings.model_fields.items():
            default, readers, meanings = rows.setdefault(name, (_default(name, field.default), [], []))
            readers.append(reader)
            meaning = field.description.rstrip(".")
            meanings += [meaning] if meaning not in meanings else []
    lines = ["| variable | default | read by | meaning |", "|---|---|---|---|"]
    for name, (default, readers, meanings) in rows.items():
        meaning = meanings[0] if len(meanings) == 1 else "; ".join(map("{}: {}".format, readers, meanings))
        lines.append(f"| `TAILRACE_{name.upper()}` | {default} | {', '.join(readers)} | {meaning} |")
    return "\n".join(lines)


def _default(name: str, value: object) -> str:
    if name == "cache_dir":
        return "`~/.cache/tailrace`"
    if value is None or value is PydanticUndefined or value in ((), ""):
        return "unset"
    if isinstance(value, Path):
        return f"`{value.relative_to(README.parent)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_every_setting_stands_in_the_readme_with_its_default_and_meaning():
    text = README.read_text()
    assert text[text.index(START) + len(START) : text.index(END)].strip() == table()


def test_the_readme_opens_with_the_two_commands():
    opening = README.read_text()[:300]
    assert opening.index("make run") < opening.index("make test")


if __name__ == "__main__":
    text = README.read_text()
    README.write_text(text[: text.index(START) + len(START)] + "\n" + table() + "\n" + text[text.index(END) :])
