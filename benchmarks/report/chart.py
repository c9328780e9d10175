"""Draws tokens per second by number of streams as an SVG: one panel for each kind of weights, one line for each peer."""

from typing import Any
from xml.sax.saxutils import escape

_PANELS = ("int4", "int8", "16-bit")
_COLOURS = ("#0b6e4f", "#c1440e", "#6b7280", "#a3762b", "#5b4b8a")  # the first is Tailrace's
_WIDTH, _HEIGHT, _TOP, _LEFT, _GAP = 250, 220, 52, 56, 40

Document = dict[str, Any]
_Series = list[tuple[int, dict[str, Any]]]  # position on the x axis, tokens/s with median, min and max


def throughput(document: Document) -> str:
    """Return the chart as SVG. `document` is the content of a results file."""
    streams: list[int] = document["size"]["streams"]
    panels = {weights: _series(document, weights, streams) for weights in _PANELS}
    panels = {weights: lines for weights, lines in panels.items() if lines}
    highest = max((y["max"] for lines in panels.values() for line in lines.values() for _, y in line), default=1.0)
    top = _round_up(highest)
    body = [_panel(number, name, lines, streams, top) for number, (name, lines) in enumerate(panels.items())]
    legend = max((len(lines) for lines in panels.values()), default=0)
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 48 + 18 * legend
    title = f"Output tokens/s by number of streams, {document['machine']['cores']} cores, {document['started'][:10]}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="16" y="24" font-size="15" fill="#111827">{escape(title)}</text>\n' + "".join(body) + "</svg>\n"
    )


def _series(document: Document, weights: str, streams: list[int]) -> dict[str, _Series]:
    lines: dict[str, _Series] = {}
    for name, peer in document["peers"].items():
        found = [(x, peer["cases"].get(f"short-{count}", {}).get("tokens_per_s")) for x, count in enumerate(streams)]
        points = [(x, value) for x, value in found if value is not None]
        if peer["weights"] == weights and points:
            lines[peer["title"] if not name.startswith("tailrace") else "Tailrace"] = points
    return dict(sorted(lines.items(), key=lambda item: item[0] != "Tailrace"))


def _panel(number: int, weights: str, lines: dict[str, _Series], streams: list[int], top: float) -> str:
    left = _LEFT + number * (_WIDTH + _GAP)
    bottom = _TOP + _HEIGHT
    step = (_WIDTH - 30) / max(1, len(streams) - 1)

    def x_of(position: int) -> float:
        return left + 15 + position * step

    def y_of(value: float) -> float:
        return bottom - value / top * (_HEIGHT - 24)

    parts = [f'<text x="{left}" y="{_TOP + 8}" font-weight="bold" fill="#111827">{weights} weights</text>\n']
    for tick in (0.0, top / 2, top):
        y = y_of(tick)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + _WIDTH}" y2="{y:.1f}" stroke="#e5e7eb"/>\n')
        parts.append(_text(left - 6, y + 4, f"{tick:,.0f}", "end"))
    for position, count in enumerate(streams):
        parts.append(_text(x_of(position), bottom + 18, f"{count}", "middle"))
    for row, (title, points) in enumerate(lines.items()):
        colour = _COLOURS[row % len(_COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(value['median']):.1f}" for x, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n')
        for x, value in points:
            parts.append(
                f'<line x1="{x_of(x):.1f}" y1="{y_of(value["min"]):.1f}" x2="{x_of(x):.1f}" y2="{y_of(value["max"]):.1f}" '
                f'stroke="{colour}"/><circle cx="{x_of(x):.1f}" cy="{y_of(value["median"]):.1f}" r="3" fill="{colour}"/>\n'
            )
        line = bottom + 42 + 18 * row
        parts.append(f'<rect x="{left}" y="{line - 9}" width="10" height="10" fill="{colour}"/>\n')
        parts.append(_text(left + 16, line, title.replace("`", ""), "start"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#374151">{escape(text)}</text>\n'


def _round_up(value: float) -> float:
    """Round up to 1, 2, 4, 6, 8 or 10 times a power of ten, so that half of it is a round number too."""
    power = 1.0
    while value > power * 10:
        power *= 10
    return next(factor * power for factor in (1, 2, 4, 6, 8, 10) if value <= factor * power)
