"""Reads the metrics of a service, and their table in docs/metrics.md."""

import re
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import ROOT

# Name, type, and the labels in alphabetical order.
Names = set[tuple[str, str, tuple[str, ...]]]


def read_metrics(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def samples(text: str) -> dict[str, float]:
    """Return the values by name and labels, in Prometheus' text form."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def exposed(text: str) -> Names:
    """Return name, type and labels of Tailrace's own metrics."""
    names = set()
    for family in text_string_to_metric_families(text):
        if family.name.startswith("tailrace_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            suffix = "_total" if family.type == "counter" else ""
            names.add((family.name + suffix, family.type, tuple(sorted(labels))))
    return names


def documented(service: str) -> Names:
    section = (ROOT / "docs" / "metrics.md").read_text().partition(f"## {service}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", section, re.MULTILINE)
    return {(name, kind, tuple(sorted(re.findall(r"`(\w+)`", labels)))) for name, kind, labels in rows}
