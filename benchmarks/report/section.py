"""Formats the content of a results file as Markdown: the section of a CPU class in docs/benchmarks.md. Does no I/O.

Every figure is a median over rounds. In tables, the smallest and the largest round follow in brackets. Headings name
the units.
"""

from benchmarks.report import ratios
from benchmarks.report.figures import NONE, Document, median, number, spread, streams

_ROLES = ("server", "bridge")
# Peers that get no rows in the tables.
_TOOLS = ("instant", "engine-16bit", "tailrace-one-slot", "tailrace-pair-int4", "tailrace-pair-16bit")


def table(document: Document) -> str:
    """Return the section in Markdown, without its heading and its chart."""
    parts = [_machine(document), _throughput(document), _waiting(document), _neighbours(document), _cost(document)]
    parts += [_bridge(document), ratios.lines(document), _missing(document)]
    return "\n".join(part for part in parts if part)


def _cell(document: Document, peer: str, case: str, figure: str) -> str:
    found = spread(document, peer, case, figure)
    if found is None:
        return NONE
    text = number(found["median"])
    if len(found["values"]) > 1:
        text += f" ({number(found['min'])}–{number(found['max'])})"
    return text


def _rows(document: Document, columns: list[tuple[str, str, str]]) -> str:
    """Return a table. `columns`: headings, cases and figures. Peers and columns without any figure are left out."""
    shown = [name for name in document["peers"] if name not in _TOOLS]
    columns = [c for c in columns if any(spread(document, name, *c[1:]) is not None for name in shown)]
    lines = [
        "| weights | | " + " | ".join(heading for heading, _, _ in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name in shown:
        peer = document["peers"][name]
        cells = [_cell(document, name, case, figure) for _, case, figure in columns]
        if any(cell != NONE for cell in cells):
            title = f"**{peer['title']}**" if name.startswith("tailrace") else peer["title"]
            lines.append(f"| {peer['weights']} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _machine(document: Document) -> str:
    machine, size = document["machine"], document["size"]
    versions: dict[str, str] = {}
    for peer in document["peers"].values():
        versions = {**peer["versions"], **versions}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "CMAKE_ARGS")
    if options := versions.get("CMAKE_ARGS"):
        named += f" (built with `{options}`)"
    limit = f" All peers are limited to {document['limit']}." if document.get("limit") else ""
    return (
        f"{'Measured' if document['complete'] else 'Cut off; measured'} on {document['started'][:10]}: "
        f"{machine['cpu']}, {machine['cores']} cores "
        f"({', '.join(machine['instructions'])}), {machine['memory_gib']:.0f} GiB, {machine['system']}. "
        f"Medians of {size['rounds']} rounds in turn, in brackets the least and the largest.{limit} {named}.\n"
    )


def _throughput(document: Document) -> str:
    size = document["size"]
    columns = [(streams(count), f"short-{count}", "tokens_per_s") for count in size["streams"]]
    columns += [(f"{streams(n)}, long prompt", f"long-{n}", "tokens_per_s") for n in size["long_streams"]]
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
        ("8 at once, TTFT p50", "burst-8", "ttft_p50_ms"),
        ("largest", "burst-8", "ttft_max_ms"),
        ("second turn", "turns", "second_ttft_ms"),
    ]
    for count in document["size"]["streams"]:
        columns += [(f"ITL p50, {streams(count)}", f"short-{count}", "itl_p50_ms")]
        columns += [("p99", f"short-{count}", "itl_p99_ms")]
    columns += [("ITL p50 while a long prompt arrives", "arrival", "itl_p50_ms"), ("p99", "arrival", "itl_p99_ms")]
    rows = _rows(document, columns)
    return f"Milliseconds to the first token (TTFT) and between tokens (ITL).\n\n{rows}" if rows else ""


def _neighbours(document: Document) -> str:
    kinds = {"yield": "that yield", "spin": "that spin"}
    counts = document["size"].get("neighbour_streams", ())
    columns = [
        (f"{title}, {streams(count)}", f"neighbours-{kind}-{count}", "to_alone")
        for kind, title in kinds.items()
        for count in counts
    ]
    rows = _rows(document, columns)
    text = f"Tokens/s beside one busy process for each core, to tokens/s alone.\n\n{rows}" if rows else ""
    for name, peer in document["peers"].items():
        for count in counts:
            figure = median(document, name, f"pair-{count}", "to_alone")
            if figure is not None:
                text += (
                    f"\nTwo engines on the same cores, {peer['weights']}, {streams(count)} each: the slower one reaches "
                    f"{number(figure)} of its tokens/s alone.\n"
                )
    return text


def _cost(document: Document) -> str:
    columns = [
        ("start to ready, s", "start", "ready_s"),
        ("first token after it, s", "start", "first_token_s"),
        ("peak memory, MiB", "memory", "peak_mib"),
    ]
    for count in document["size"]["streams"]:
        columns.append((f"CPU s per 1,000 tokens, {streams(count)}", f"short-{count}", "cpu_s_per_1000_tokens"))
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
        counts = [f"tokens/s, {streams(n)}" for n in document["size"]["streams"][1:]]
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
    for count in document["size"].get("constraint_streams", ()):
        case = f"constraint-{count}"
        names = ("cost_us_per_token", "free_step_ms", "step_ms")
        cost, free, held = (median(document, "tailrace-16bit", case, name) for name in names)
        if cost is not None and free is not None and held is not None:
            parts.append(
                f"{number(cost)} µs at {streams(count)} (a step takes {number(held)} ms instead of {number(free)})"
            )
    return f"\nHolding a reply to a JSON Schema costs for each token {', '.join(parts)}.\n" if parts else ""


def _missing(document: Document) -> str:
    lines = []
    for name, peer in document["peers"].items():
        for case, reasons in peer["failures"].items():
            lines.append(f"- {peer['title']} ({name}), {case}: {'; '.join(reasons)}")
    return "Not measured:\n\n" + "\n".join(lines) + "\n" if lines else ""
