"""Writes the generated sections of README.md, docs/ and the client: `python -m tests.docs.generate`, or `make docs-generate`.

A section stands between `<!-- generated: NAME -->` and `<!-- /generated -->`, in Python between comments of the same text.
A test compares each section with the code.
"""

import textwrap
from collections.abc import Callable, Iterator

from benchmarks.report import readme
from benchmarks.report.classes import all_classes
from tailrace_shared.request_fields import SAMPLING_FIELDS
from tests.docs import architectures, catalogue, errors, metrics, settings
from tests.support.processes import ROOT

_CODE_WIDTH, _INDENT = 116, "    "  # of a text within a class


def sampling() -> str:
    """Return the table of sampling parameters in Markdown."""
    lines = ["| field | `/ai/run` | OpenAI's routes | gRPC | default | meaning |", "|---|---|---|---|---|---|"]
    for field in SAMPLING_FIELDS:
        ranges = f"{field.rest} | {field.openai or field.rest} | {field.grpc}"
        lines.append(f"| `{field.name}` | {ranges} | {field.default} | {field.meaning} |")
    return "\n".join(lines)


def client_sampling() -> str:
    """Return the sampling parameters as keys of the client's TypedDict, with a docstring each."""
    types = {"number": "float", "integer": "int"}
    lines = []
    for field in SAMPLING_FIELDS:
        text = f'"""{field.meaning} Range: {field.grpc}. Default: {field.default}."""'
        lines += [f"{field.name}: {types[field.kind]}", *textwrap.wrap(text, _CODE_WIDTH)]
    return textwrap.indent("\n".join(lines), _INDENT).strip()


def performance() -> str:
    """Return the README's table of the newest benchmarks in Markdown."""
    return readme.table(all_classes())


SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("docs/configuration.md", settings.tables),
    "http errors": ("docs/errors.md", errors.http_table),
    "grpc errors": ("docs/errors.md", errors.grpc_table),
    "server metrics": ("docs/metrics.md", metrics.server_table),
    "bridge metrics": ("docs/metrics.md", metrics.bridge_table),
    "served architectures": ("docs/architectures.md", architectures.served_table),
    "refused architectures": ("docs/architectures.md", architectures.refused_table),
    "sampling": ("docs/rest-api.md", sampling),
    "client sampling": ("tailrace/options.py", client_sampling),
    "catalogue": ("docs/catalogue.md", catalogue.generation_table),
    "embedding catalogue": ("docs/catalogue.md", catalogue.embedding_table),
    "removed models": ("docs/catalogue.md", catalogue.removed_table),
    "performance": ("README.md", performance),
}


def section(name: str) -> str:
    """Return the section as the file has it."""
    _, found, _ = _split(name)
    return found.strip()


def write() -> Iterator[str]:
    """Write every section that is out of date. Yields the names of those."""
    for name, (file, make) in SECTIONS.items():
        before, found, after = _split(name)
        text = make()
        if found.strip() != text:
            space = f"\n{_INDENT}" if file.endswith(".py") else "\n\n"
            (ROOT / file).write_text(f"{before}{space}{text}{space}{after}")
            yield f"{file}: {name}"


def _split(name: str) -> tuple[str, str, str]:
    begin, last = f"<!-- generated: {name} -->", "<!-- /generated -->"
    if SECTIONS[name][0].endswith(".py"):
        begin, last = f"# generated: {name}", "# /generated"
    before, _, rest = (ROOT / SECTIONS[name][0]).read_text().partition(begin)
    found, end, after = rest.partition(last)
    assert end, f"{SECTIONS[name][0]} has no section {begin}"
    return before + begin, found, end + after


if __name__ == "__main__":
    for written in write():
        print(written)
