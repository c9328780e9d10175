"""Writes the generated sections of README.md and docs/: `python -m tests.docs.generate`, or `make docs-generate`.

A section stands between `<!-- generated: NAME -->` and `<!-- /generated -->`. A test compares each section with the code.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tailrace_shared.request_fields import SAMPLING_FIELDS
from tests.docs import errors, metrics, settings
from tests.support.processes import ROOT

RESULTS = ROOT / "benchmarks" / "results"
_END = "<!-- /generated -->"
# The README's five rows: title, weights, and the peer's name in the results.
_PEERS = (
    ("**Tailrace**", "int4", "tailrace-int4"),
    ("llama.cpp server", "int4", "llama.cpp"),
    ("**Tailrace**", "16-bit", "tailrace-16bit"),
    ("vLLM for CPU", "16-bit", "vllm"),
    ("**Tailrace**", "int8", "tailrace-int8"),
)
_STREAMS = (1, 8, 32)


def sampling() -> str:
    """Return the table of sampling parameters in Markdown."""
    lines = ["| field | `/ai/run` | OpenAI's routes | gRPC | default | meaning |", "|---|---|---|---|---|---|"]
    for field in SAMPLING_FIELDS:
        ranges = f"{field.rest} | {field.openai or field.rest} | {field.grpc}"
        lines.append(f"| `{field.name}` | {ranges} | {field.default} | {field.meaning} |")
    return "\n".join(lines)


def performance() -> str:
    """Return the README's table of the newest complete benchmark in Markdown."""
    cases = {name: peer["cases"] for name, peer in json.loads(newest_results().read_text())["peers"].items()}
    streams = " | ".join(f"tokens/s, {n} stream{'s' if n > 1 else ''}" for n in _STREAMS)
    lines = [f"| | weights | {streams} | first token, ms | memory, MiB |", "|---|---|" + "---|" * (len(_STREAMS) + 2)]
    for title, weights, peer in _PEERS:
        figures = [_median(cases[peer], f"short-{n}", "tokens_per_s") for n in _STREAMS]
        figures += [_median(cases[peer], "short-1", "ttft_p50_ms"), _median(cases[peer], "memory", "peak_mib")]
        lines.append(f"| {title} | {weights} | " + " | ".join(f"{figure:,.0f}" for figure in figures) + " |")
    return "\n".join(lines)


def newest_results() -> Path:
    """Return the newest results of the whole benchmark."""
    return max(RESULTS.glob("*-full.json"))


def _median(cases: dict, case: str, figure: str) -> float:
    return float(cases[case][figure]["median"])


SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("docs/configuration.md", settings.tables),
    "http errors": ("docs/errors.md", errors.http_table),
    "grpc errors": ("docs/errors.md", errors.grpc_table),
    "server metrics": ("docs/metrics.md", metrics.server_table),
    "bridge metrics": ("docs/metrics.md", metrics.bridge_table),
    "sampling": ("docs/rest-api.md", sampling),
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
