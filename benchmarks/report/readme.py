"""Formats the README's table: the most important figures of every CPU class side by side. Does no I/O."""

from collections.abc import Sequence

from benchmarks.report.classes import ClassResults
from benchmarks.report.figures import NONE, median

# Rows of the table: title, weights, and the peer's name in the results.
_PEERS = (
    ("**Tailrace**", "int4", "tailrace-int4"),
    ("llama.cpp server", "int4", "llama.cpp"),
    ("**Tailrace**", "16-bit", "tailrace-16bit"),
    ("vLLM for CPU", "16-bit", "vllm"),
    ("**Tailrace**", "int8", "tailrace-int8"),
)
_FIGURES = (
    ("1 stream", "short-1", "tokens_per_s"),
    ("8 streams", "short-8", "tokens_per_s"),
    ("32 streams", "short-32", "tokens_per_s"),
    ("first token, ms", "short-1", "ttft_p50_ms"),
)


def table(classes: Sequence[ClassResults]) -> str:
    """Return the table in Markdown: a row for each peer, four columns for each class without a limit."""
    shown = [each for each in classes if each.limit is None]
    headings = [f"{each.family}: {title}" for each in shown for title, _, _ in _FIGURES]
    lines = ["| tokens/s | weights | " + " | ".join(headings) + " |", "|---|---|" + "---|" * len(headings)]
    for title, weights, peer in _PEERS:
        cells = [_cell(each, peer, case, figure) for each in shown for _, case, figure in _FIGURES]
        lines.append(f"| {title} | {weights} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(results: ClassResults, peer: str, case: str, figure: str) -> str:
    value = median(results.document, peer, case, figure)
    return NONE if value is None else f"{value:,.0f}"
