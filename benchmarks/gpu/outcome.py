"""Compares results with the goals, and summarizes them as text. Does not import torch."""

from typing import Any, NamedTuple

from benchmarks.gpu.state import Results

OURS_16 = "tailrace 16-bit"
OURS_8 = "tailrace int8"
CONTINUOUS = "continuous batching 16-bit"


def streams(count: int) -> str:
    """Return the name of a load with `count` short prompts at the same time."""
    return "1 stream" if count == 1 else f"{count} streams"


class Goal(NamedTuple):
    """A goal for an H200 with the shapes of Llama-2-7B.

    `least`: the smallest ratio that reaches the goal. `value`: the measured ratio; None if a figure is missing.
    """

    name: str
    least: float
    value: float | None


def goals(results: Results) -> list[Goal]:
    """Return the goals with the ratios of these results. With the tiny shapes, all ratios are None."""
    checks = results["parts"].get("benchmark", {}).get("checks", {})
    if checks.get(OURS_16, {}).get("figures", {}).get("shapes") == "tiny":
        results = {"parts": {}}
    one_16 = _figure(results, OURS_16, streams(1))
    return [
        Goal("16-bit, 1 stream, share of the bound", 0.70, _ratio(one_16, _figure(results, OURS_16))),
        Goal("int8 / 16-bit, 1 stream", 1.3, _ratio(_figure(results, OURS_8, streams(1)), one_16)),
        Goal(
            "tailrace / continuous batching, 64 streams",
            2.0,
            _ratio(
                _figure(results, OURS_16, streams(64), "tokens_per_s"),
                _figure(results, CONTINUOUS, streams(64), "tokens_per_s"),
            ),
        ),
    ]


def _figure(results: Results, check: str, load: str | None = None, name: str = "decode_tokens_per_s") -> float | None:
    """Return a figure of a load, or the bandwidth bound in tokens/s if `load` is None; None if it is missing."""
    record = results["parts"].get("benchmark", {}).get("checks", {}).get(check, {}).get("figures", {})
    value: Any = record.get("bound_tokens_per_s") if load is None else record.get(load, {}).get(name)
    return value if isinstance(value, int | float) and value > 0 else None


def _ratio(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else round(first / second, 3)


def failures(results: Results) -> list[str]:
    """Return one line for each failed check, and for each part that is not complete."""
    lines = []
    for part, state in results["parts"].items():
        for name, check in state["checks"].items():
            if check["status"] == "failed":
                lines.append(f"{part}, {name}: {check['reason']}")
        if "failed" in state:
            lines.append(f"{part}: {state['failed']}")
    return lines


def summary(results: Results) -> str:
    """Return the counts of checks, the figures of the benchmark's loads, the goals and the failures as text."""
    lines = []
    for part, state in results["parts"].items():
        counts: dict[str, int] = {}
        for check in state["checks"].values():
            counts[check["status"]] = counts.get(check["status"], 0) + 1
        text = ", ".join(f"{count} {status}" for status, count in counts.items())
        lines.append(f"{part}: {text or 'nothing ran'} ({state.get('seconds', 0)} s)")
    for name, check in results["parts"].get("benchmark", {}).get("checks", {}).items():
        for load, figures in check["figures"].items():
            if isinstance(figures, dict) and "tokens_per_s" in figures:
                lines.append(f"{name}, {load}: {figures['tokens_per_s']} tokens/s, first after {figures['ttft_ms']} ms")
    for goal in results["goals"]:
        value = "not measured" if goal["value"] is None else f"{goal['value']} ({_verdict(goal)})"
        lines.append(f"goal: {goal['name']} >= {goal['least']}: {value}")
    lines += [f"failed: {line}" for line in failures(results)]
    return "\n".join(lines)


def _verdict(goal: Results) -> str:
    return "reached" if goal["value"] >= goal["least"] else "missed"
