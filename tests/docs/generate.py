"""Writes the generated sections of README.md and docs/: `python -m tests.docs.generate`, or `make docs-generate`.

A section stands between `<!-- generated: NAME -->` and `<!-- /generated -->`. A test compares each section with the code.
"""

from collections.abc import Callable, Iterator

from benchmarks.report import readme
from benchmarks.report.classes import all_classes
from tailrace_shared.request_fields import SAMPLING_FIELDS
from tests.docs import architectures, catalogue, errors, metrics, settings
from tests.support.processes import ROOT

_END = "<!-- /generated -->"


def sampling() -> str:
    """Return the table of sampling parameters in Markdown."""
    lines = ["| field | `/ai/run` | OpenAI's routes | gRPC | default | meaning |", "|---|---|---|---|---|---|"]
    for field in SAMPLING_FIELDS:
        ranges = f"{field.rest} | {field.openai or field.rest} | {field.grpc}"
        lines.append(f"| `{field.name}` | {ranges} | {field.default} | {field.meaning} |")
    return "\n".join(lines)


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
            (ROOT / file).write_text(f"{before}\n\n{text}\n\n{after}")
            yield f"{file}: {name}"


def _split(name: str) -> tuple[str, str, str]:
    begin = f"<!-- generated: {name} -->"
    before, _, rest = (ROOT / SECTIONS[name][0]).read_text().partition(begin)
    found, end, after = rest.partition(_END)
    assert end, f"{SECTIONS[name][0]} has no section {begin}"
    return before + begin, found, end + after


if __name__ == "__main__":
    for written in write():
        print(written)
