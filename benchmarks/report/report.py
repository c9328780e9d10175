"""Writes the newest results of every CPU class into docs/benchmarks.md: a section and a chart for each class."""

from pathlib import Path

from benchmarks.processes import ROOT
from benchmarks.report import chart, kernel_tables, section
from benchmarks.report.classes import ClassResults, all_classes

PAGE = ROOT / "docs" / "benchmarks.md"
CHARTS = ROOT / "docs" / "images"
BEGIN = "<!-- benchmark: written by `python -m benchmarks --report`; do not edit -->"
END = "<!-- /benchmark -->"


def write() -> None:
    """Write the charts, and the part of docs/benchmarks.md between its two marks. Exits if a mark is missing."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} lacks the marks {BEGIN} and {END}: add them where the figures belong")
    sections = []
    for results in all_classes():
        path = CHARTS / f"throughput-{results.name}.svg"
        path.write_text(chart.throughput(results.document), encoding="utf-8")
        sections.append(_section(results, path))
    PAGE.write_text(f"{before}{BEGIN}\n{''.join(sections)}{END}{after}", encoding="utf-8")


def _section(results: ClassResults, chart_file: Path) -> str:
    parts = [f"### {results.title}", section.table(results.document).rstrip()]
    parts.append(f"![Tokens per second by number of streams]({chart_file.relative_to(PAGE.parent).as_posix()})")
    if results.kernels is not None:
        parts.append(kernel_tables.tables(results.kernels).rstrip())
    parts.append(f"All figures: `{results.path.parent.relative_to(ROOT).as_posix()}/`.")
    return "\n\n".join(parts) + "\n\n"
