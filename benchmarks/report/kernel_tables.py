"""Formats the results of benchmarks.kernels as Markdown: a table for each model. Does no I/O."""

from typing import Any

from benchmarks.report.figures import NONE, Document, number

Row = dict[str, Any]


def tables(document: Document) -> str:
    """Return a paragraph about the bandwidth, and a table for each model."""
    bandwidth = document["bandwidth_gb_per_s"]
    read = ", ".join(f"{number(value)} GB/s with {_threads(int(count))}" for count, value in bandwidth.items())
    text = (
        f"Products of linear layers, measured on {document['started'][:10]} on {document['machine']['cpu']}. Memory is "
        f"read at {read}. One thread: milliseconds of CPU time. Several: of wall time. The share is that of the bandwidth "
        f"of as many threads.\n"
    )
    for model, title in document["models"].items():
        text += f"\n{_table(document, model, title)}"
    return text


def _table(document: Document, model: str, title: str) -> str:
    rows = document["rows"]
    headings = [f"{count} row{'s' if count > 1 else ''}, ms" for count in rows]
    lines = [
        f"| {title} | instruction set | threads | " + " | ".join(headings) + " | GB/s at 1 row | share |",
        "|---|---|---|" + "---|" * (len(headings) + 2),
    ]
    found: dict[tuple[str, str, str, int], dict[int, Row]] = {}
    for row in document["results"]:
        if row["model"] == model:
            key = (row["format"], row["subject"], row["features"], row["threads"])
            found.setdefault(key, {})[row.get("rows", 0)] = row
    for (weight_format, subject, features, threads), by_rows in sorted(found.items(), key=_place):
        cells = [number(by_rows[count]["ms"]) if count in by_rows else NONE for count in rows]
        cells += _speed(by_rows.get(1), document["bandwidth_gb_per_s"][str(threads)])
        name = _name(subject, next(iter(by_rows.values())))
        lines.append(f"| {weight_format}, {name} | {features} | {threads} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _place(item: tuple[tuple[str, str, str, int], Any]) -> tuple[int, str, int]:
    """Return the sort key, which groups results by format and number of threads, and keeps the order within a group."""
    (weight_format, _, _, threads), _ = item
    return len(weight_format), weight_format, threads


def _speed(row: Row | None, bandwidth: float) -> list[str]:
    if row is None:
        return [NONE, NONE]
    return [number(row["gb_per_s"]), f"{row['gb_per_s'] / bandwidth:.0%}"]


def _name(subject: str, row: Row) -> str:
    """Return the subject's name in the table, with the backend that Tailrace chose."""
    backend = f" ({row['backend']})" if row.get("backend") else ""
    return f"**Tailrace**{backend}" if subject == "tailrace" else subject


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
