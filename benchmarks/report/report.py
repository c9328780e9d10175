"""Writes results (JSON) as the tables of docs/benchmarks.md and as the chart. Only `write` does I/O.

Every figure is a median over rounds, followed by the smallest and the largest round in brackets. Headings name the
units.
"""

from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.report import chart

PAGE = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "images" / "throughput.svg"
BEGIN = "<!-- benchmark: written by `python -m benchmarks --report`; do not edit -->"
END = "<!-- /benchmark -->"
NONE = "–"
_ROLES = ("server", "bridge")
_TOOLS = ("instant", "engine-16bit", "tailrace-one-slot")  # peers without rows of their own in the tables

Document = dict[str, Any]


def write(document: Document, results: Path) -> None:
    """Write the chart, and the section of docs/benchmarks.md between its two marks. Exits if a mark is missing."""
    CHART.write_text(chart.throughput(document), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} lacks the marks {BEGIN} and {END}: add them where the figures belong")
    links = f"![Tokens per second by number of streams]({CHART.relative_to(PAGE.parent).as_posix()})\n\n"
    if results.resolve().is_relative_to(ROOT):
        links += f"All figures: `{results.resolve().relative_to(ROOT).as_posix()}`.\n"
    PAGE.write_text(f"{before}{BEGIN}\n{table(document)}\n{links}{END}{after}", encoding="utf-8")


def table(document: Document) -> str:
    """Return the section in Markdown, without the chart."""
    parts = [_heading(document), _throughput(document), _waiting(document), _cost(document), _bridge(document)]
    parts += [_ratios(document), _missing(document)]
    return "\n".join(part for part in parts if part)


def spread(document: Document, peer: str, case: str, figure: str) -> dict[str, Any] | None:
    """Return median, min and max, or None if nothing was measured."""
    found: dict[str, Any] | None = document["peers"].get(peer, {}).get("cases", {}).get(case, {}).get(figure)
    return found


def median(document: Document, peer: str, case: str, figure: str) -> float | None:
    """Return the median, or None if nothing was measured."""
    found = spread(document, peer, case, figure)
    return None if found is None else found["median"]


def number(value: float) -> str:
    """Format a value with three significant digits, thousands with commas."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cell(document: Document, peer: str, case: str, figure: str) -> str:
    found = spread(document, peer, case, figure)
    if found is None:
        return NONE
    text = number(found["median"])
    if len(found["values"]) > 1:
        text += f" ({number(found['min'])}–{number(found['max'])})"
    return text


def _rows(document: Document, columns: list[tuple[str, str, str]]) -> str:
    """Return a table. `columns` are heading, case and figure. Peers without any of the figures have no row."""
    lines = [
        "| weights | | " + " | ".join(heading for heading, _, _ in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, peer in document["peers"].items():
        cells = [_cell(document, name, case, figure) for _, case, figure in columns]
        if name not in _TOOLS and any(cell != NONE for cell in cells):
            title = f"**{peer['title']}**" if name.startswith("tailrace") else peer["title"]
            lines.append(f"| {peer['weights']} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _heading(document: Document) -> str:
    machine, size = document["machine"], document["size"]
    versions: dict[str, str] = {}
    for peer in document["peers"].values():
        versions = {**peer["versions"], **versions}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "CMAKE_ARGS")
    return (
        f"{'Measured' if document['complete'] else 'Cut off; measured'} on {document['started'][:10]}: "
        f"{machine['cpu']}, {machine['cores']} cores "
        f"({', '.join(machine['instructions'])}), {machine['memory_gib']:.0f} GiB, {machine['system']}. "
        f"Medians of {size['rounds']} rounds in turn, in brackets the least and the largest. {named}.\n"
    )


def _throughput(document: Document) -> str:
    size = document["size"]
    columns = [(_streams(count), f"short-{count}", "tokens_per_s") for count in size["streams"]]
    columns += [(f"{_streams(n)}, long prompt", f"long-{n}", "tokens_per_s") for n in size["long_streams"]]
    rows = _rows(document, columns)
    return (
        f"Output tokens/s, whole load with its prompts: 30 tokens in and {size['short_reply']} out, "
        f"long prompts 1,500 in and {size['long_reply']} out.\n\n{rows}"
        if rows
        else ""
    )


def _waiting(document: Document) -> str:
    columns = [
        ("TTFT, 30 tokens in", "short-1", "ttft_p50_ms"),
        ("TTFT, 1,500 in", "long-1", "ttft_p50_ms"),
        ("second turn", "turns", "second_ttft_ms"),
    ]
    for count in document["size"]["streams"]:
        columns += [(f"ITL p50, {_streams(count)}", f"short-{count}", "itl_p50_ms")]
        columns += [("p99", f"short-{count}", "itl_p99_ms")]
    columns += [("ITL p50 while a long prompt arrives", "arrival", "itl_p50_ms"), ("p99", "arrival", "itl_p99_ms")]
    rows = _rows(document, columns)
    return f"Milliseconds to the first token (TTFT) and between tokens (ITL).\n\n{rows}" if rows else ""


def _cost(document: Document) -> str:
    columns = [
        ("start to ready, s", "start", "ready_s"),
        ("first token after it, s", "start", "first_token_s"),
        ("peak memory, MiB", "memory", "peak_mib"),
    ]
    for count in document["size"]["streams"]:
        columns.append((f"CPU s per 1,000 tokens, {_streams(count)}", f"short-{count}", "cpu_s_per_1000_tokens"))
    rows = _rows(document, columns)
    imports = document["imports"].get("seconds")
    note = f"`import torch, transformers` alone takes {number(imports['median'])} s.\n" if imports and rows else ""
    return f"{rows}\n{note}" if rows else ""


def _bridge(document: Document) -> str:
    lines = []
    ways = [("REST and SSE", "tailrace-16bit", "rest"), ("gRPC", "tailrace-16bit", "grpc")]
    for title, peer, client in [*ways, ("engine in process", "engine-16bit", "process")]:
        cells = [_cell(document, peer, f"share-{client}-1", "ttft_p50_ms")]
        cells += [_cell(document, peer, f"share-{client}-{n}", "tokens_per_s") for n in document["size"]["streams"][1:]]
        if any(cell != NONE for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    if lines:
        counts = [f"tokens/s, {_streams(n)}" for n in document["size"]["streams"][1:]]
        lines = [
            "| Tailrace 16-bit by | TTFT, ms | " + " | ".join(counts) + " |",
            "|---|---|" + "---|" * len(counts),
            *lines,
        ]
    text = "\n".join(lines) + "\n" if lines else ""
    figures = [
        median(document, "instant", "instant-unpaced-64", "tokens_per_bridge_cpu_s"),
        median(document, "instant", "instant-paced-64", "tokens_per_bridge_cpu_s"),
        median(document, "instant", "instant-rest-1", "ttft_p50_ms"),
        median(document, "instant", "instant-grpc-1", "ttft_p50_ms"),
    ]
    known = [figure for figure in figures if figure is not None]
    if len(known) == len(figures):
        speed, paced, rest, grpc = known
        text += (
            f"\nOver an instant engine and 64 streams the bridge passes on {number(speed)} tokens per CPU second, or "
            f"{number(paced)} when each stream gets one every 25 ms. It adds {number(rest - grpc)} ms to the TTFT.\n"
        )
    text += _constraint(document)
    waiting = [median(document, "tailrace-one-slot", "waiting", f"{role}_kib_per_request") for role in _ROLES]
    if all(kib is not None for kib in waiting):
        server, bridge = (number(kib) for kib in waiting if kib is not None)
        text += f"\nA request that waits for a slot takes {server} KiB in the server and {bridge} KiB in the bridge.\n"
    return text


def _constraint(document: Document) -> str:
    parts = []
    for streams in document["size"].get("constraint_streams", ()):
        case = f"constraint-{streams}"
        names = ("cost_us_per_token", "free_step_ms", "step_ms")
        cost, free, held = (median(document, "tailrace-16bit", case, name) for name in names)
        if cost is not None and free is not None and held is not None:
            parts.append(
                f"{number(cost)} µs at {_streams(streams)} (a step takes {number(held)} ms instead of {number(free)})"
            )
    return f"\nHolding a reply to a JSON Schema costs for each token {', '.join(parts)}.\n" if parts else ""


# Ratios of one peer's figure to another's: title, case, figure, both peers.
_OVER_PEERS = [
    ("1 stream, int4, tokens/s: Tailrace to llama.cpp", "short-1", "tokens_per_s", "tailrace-int4", "llama.cpp"),
    ("1 stream, int8, tokens/s: Tailrace to bitsandbytes", "short-1", "tokens_per_s", "tailrace-int8", "generate-int8"),
    ("8 streams, 16-bit, tokens/s: Tailrace to vLLM", "short-8", "tokens_per_s", "tailrace-16bit", "vllm"),
    ("32 streams, 16-bit, tokens/s: Tailrace to vLLM", "short-32", "tokens_per_s", "tailrace-16bit", "vllm"),
    ("64 streams, 16-bit, tokens/s: Tailrace to vLLM", "short-64", "tokens_per_s", "tailrace-16bit", "vllm"),
    ("8 streams, 16-bit, p99 ITL: Tailrace to vLLM", "short-8", "itl_p99_ms", "tailrace-16bit", "vllm"),
    ("32 streams, 16-bit, p99 ITL: Tailrace to vLLM", "short-32", "itl_p99_ms", "tailrace-16bit", "vllm"),
    ("64 streams, 16-bit, p99 ITL: Tailrace to vLLM", "short-64", "itl_p99_ms", "tailrace-16bit", "vllm"),
    ("TTFT of 1,500 tokens, 16-bit: Tailrace to vLLM", "long-1", "ttft_p50_ms", "tailrace-16bit", "vllm"),
    ("TTFT of 1,500 tokens, int4: Tailrace to llama.cpp", "long-1", "ttft_p50_ms", "tailrace-int4", "llama.cpp"),
]
# Ratios of two figures of one peer: title, peer, case and figure of numerator and denominator.
_WITHIN = [
    ("Tailrace, 16-bit, TTFT: second turn to first", "tailrace-16bit", "turns/second_ttft_ms", "turns/first_ttft_ms"),
    ("Tailrace, int4, TTFT: second turn to first", "tailrace-int4", "turns/second_ttft_ms", "turns/first_ttft_ms"),
    (
        "Tailrace, 16-bit, a long prompt arrives: p99 ITL to median",
        "tailrace-16bit",
        "arrival/itl_p99_ms",
        "arrival/itl_p50_ms",
    ),
    (
        "Tailrace, 16-bit, tokens/s: 64 streams to 32",
        "tailrace-16bit",
        "short-64/tokens_per_s",
        "short-32/tokens_per_s",
    ),
    ("Tailrace, int4, tokens/s: 64 streams to 32", "tailrace-int4", "short-64/tokens_per_s", "short-32/tokens_per_s"),
]


def _ratios(document: Document) -> str:
    pairs = [
        (title, median(document, ours, case, figure), median(document, theirs, case, figure))
        for title, case, figure, ours, theirs in _OVER_PEERS
    ]
    for title, peer, above, below in _WITHIN:
        one, other = (median(document, peer, *figure.split("/")) for figure in (above, below))
        pairs.append((title, one, other))
    start, rival = (median(document, peer, "start", "ready_s") for peer in ("tailrace-int4", "llama.cpp"))
    imports = document["imports"].get("seconds")
    bound = rival + imports["median"] if rival is not None and imports else None
    pairs.append(("Start to ready: Tailrace int4 to llama.cpp and `import torch, transformers` together", start, bound))
    lines = [f"- {title}: {one / other:.2f}" for title, one, other in pairs if one is not None and other]
    return "Ratios of medians:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _missing(document: Document) -> str:
    lines = []
    for name, peer in document["peers"].items():
        for case, reasons in peer["failures"].items():
            lines.append(f"- {peer['title']} ({name}), {case}: {'; '.join(reasons)}")
    return "Not measured:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"
