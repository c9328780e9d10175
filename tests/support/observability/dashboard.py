"""Reads the Grafana dashboard and the alerts, and sends their queries to a running Prometheus.

`python -m tests.support.observability.dashboard http://127.0.0.1:9090` prints the queries of the dashboard that return nothing.
"""

import json
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "tailrace.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
# Values of Grafana's variables: all servers, all models, and times that fit a short run.
VARIABLES = {"$__rate_interval": "1m", "$__range": "5m", "$instance": ".*", "$model": ".*"}
# A name with its labels, if it has any in braces.
_SELECTOR = re.compile(r"\b((?:tailrace|process)_\w+|up|ALERTS)\b(?:{([^}]*)})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


@dataclass(frozen=True)
class Query:
    title: str
    legend: str
    expression: str

    def selectors(self) -> Iterator[tuple[str, set[str]]]:
        """Yield the metrics that the query reads, each with the labels of its selector."""
        for name, labels in _SELECTOR.findall(self.expression):
            yield name, set(_LABEL.findall(re.sub(r'"[^"]*"', "", labels)))

    def filled(self) -> str:
        expression = self.expression
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        return expression


def panels() -> list[dict]:
    """Return the dashboard's panels without its rows, which are headings."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[Query]:
    return [
        Query(panel["title"], target["legendFormat"], target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]


def alert_queries() -> list[Query]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [Query(rule["alert"], "", rule["expr"]) for group in groups for rule in group["rules"]]


def ask(prometheus: str, expression: str) -> list[dict]:
    """Return the result of an instant query: an object for each series."""
    url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)["data"]["result"]


def main(prometheus: str) -> int:
    """Print the queries without data. Returns the exit code: 0 if each query returns data, else 1."""
    empty = 0
    for query in dashboard_queries():
        values = [series["value"][1] for series in ask(prometheus, query.filled())]
        has_data = any(value != "NaN" for value in values)
        empty += not has_data
        print(f"{'ok' if has_data else 'NO DATA':8}{query.title} ({query.legend}): {', '.join(values[:6])}")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
