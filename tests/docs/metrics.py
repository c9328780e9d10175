"""Makes the tables of docs/metrics.md from the metrics that both services expose: the help texts are the meanings."""

from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import http_bridge.observability.metrics
import inference_server.observability.metrics
from inference_server.engine.histogram import Histogram

# These labels precede the others of a metric.
_FIRST_LABELS = ("model", "route")


def server_table() -> str:
    """Return the table of the inference server's metrics in Markdown."""
    metrics = inference_server.observability.metrics.Metrics()
    metrics.expect(["model"])
    metrics.refused.labels("model", "reason")
    metrics.prompt_tokens.labels("model", "account")
    metrics.generation_tokens.of("model", "account")
    metrics.watch(lambda: [("model", _engine())])
    metrics.watch_utilization(lambda: 0.2)
    return _table(metrics.registry)


def bridge_table() -> str:
    """Return the table of the bridge's metrics in Markdown."""
    metrics = http_bridge.observability.metrics.Metrics()
    metrics.add_routes(["route"])
    metrics.requests.labels("route", "200")
    metrics.watch_servers(lambda: 1, lambda: 1)
    metrics.watch_batches(lambda status: 1, lambda state: 1)
    return _table(metrics.registry)


def _engine() -> Any:
    totals = SimpleNamespace(queried_tokens=0, hit_tokens=0, preemptions=0, drafted_tokens=0, accepted_tokens=0)
    gauges = {
        "num_running": 0,
        "num_waiting": 0,
        "num_waiting_batch": 0,
        "num_slots": 1,
        "num_blocks_in_use": 0,
        "num_blocks": 1,
    }
    return SimpleNamespace(totals=totals, step_tokens=Histogram((1.0,)), **gauges)


def _table(registry: CollectorRegistry) -> str:
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        if not family.name.startswith("tailrace_"):
            continue
        assert family.samples, f"{family.name} has no series: create one above"
        found = {label for sample in family.samples for label in sample.labels} - {"le"}
        labels = ", ".join(
            f"`{label}`" for label in sorted(found, key=lambda label: (label not in _FIRST_LABELS, label))
        )
        name = family.name + ("_total" if family.type == "counter" else "")
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines)
