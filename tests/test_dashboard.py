"""Grafana's dashboard and Prometheus' alerts compared with the metrics that docs/metrics.md lists."""

import re
import shutil
import subprocess

import pytest

from tests.support.observability.dashboard import ALERTS, DEPLOY, alert_queries, dashboard_queries, panels

# Metrics of Prometheus itself, and of prometheus_client's collector for processes.
OTHERS = {
    "up": {"job"},
    "ALERTS": {"alertname", "alertstate"},
    "process_cpu_seconds_total": {"job"},
    "process_resident_memory_bytes": {"job"},
    "process_start_time_seconds": {"job"},
}
PAGE = DEPLOY.parent / "docs" / "metrics.md"
# Prometheus adds it to each series.
EVERYWHERE = {"instance"}


def listed() -> dict[str, set[str]]:
    """Return the labels of each series of the table. A histogram has three series."""
    rows = re.findall(r"^\| `(tailrace_\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    metrics = dict(OTHERS)
    for name, kind, labels in rows:
        endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        metrics |= {name + ending: set(re.findall(r"`(\w+)", labels)) for ending in endings}
    return metrics


@pytest.mark.parametrize("query", [*dashboard_queries(), *alert_queries()], ids=lambda query: query.title)
def test_a_query_reads_metrics_that_exist_by_labels_that_they_have(query):
    metrics = listed()
    selectors = list(query.selectors())
    assert selectors
    for name, labels in selectors:
        assert name in metrics, f"{name} is not in docs/metrics.md"
        assert labels <= metrics[name] | EVERYWHERE


def test_each_panel_has_a_unit_and_a_sentence():
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]


def test_promtool_finds_no_fault_in_the_configuration_and_the_alerts():
    if not (promtool := shutil.which("promtool")):
        pytest.skip("there is no promtool here (Debian: apt-get install prometheus)")
    configuration = DEPLOY / "prometheus" / "prometheus.yml"
    for arguments in (["config", configuration], ["rules", ALERTS]):
        subprocess.run([promtool, "check", *arguments], check=True, timeout=30)
