"""What the bridge counts, for Prometheus. Knows names and labels; knows nothing of when something is counted.

deploy/METRICS.md has a table.
"""

import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

RouteLabel = Literal["run", "chat_completions", "completions", "binding", "models", "health", "pages", "other"]

_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_FIRST_EVENT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)


class Metrics:
    def __init__(self) -> None:
        # Each counter and histogram would have one more series, of the moment it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("tailrace_build", "What runs here", registry=registry).info({"version": _version()})
        self.requests = Counter(
            "tailrace_http_requests", "Requests by the status of their answer", ["route", "status"], registry=registry
        )
        self.clients_gone = Counter(
            "tailrace_http_clients_gone",
            "Clients that left before their answer was whole",
            ["route"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "tailrace_http_requests_in_flight", "Requests that are being answered", ["route"], registry=registry
        )
        self.duration = Histogram(
            "tailrace_http_request_duration_seconds",
            "From the headers of a request to the end of its answer",
            ["route"],
            buckets=_DURATION,
            registry=registry,
        )
        self.first_event = Histogram(
            "tailrace_http_time_to_first_event_seconds",
            "From the headers of a request to the first event of its stream",
            ["route"],
            buckets=_FIRST_EVENT,
            registry=registry,
        )
        self.connections = Gauge("tailrace_http_connections", "Connections that are open", registry=registry)
        self.connections_refused = Counter(
            "tailrace_http_connections_refused", "Connections that were one too many", registry=registry
        )
        self.servers = Gauge(
            "tailrace_upstream_servers",
            "Inference servers that were found, by what they say",
            ["state"],
            registry=registry,
        )
        # Series begin with 0: a rate does not see the first of what was not there before.
        for route in get_args(RouteLabel):
            for family in (self.clients_gone, self.in_flight, self.duration, self.first_event):
                family.labels(route)

    def watch_servers(self, num_serving: Callable[[], int], num_found: Callable[[], int]) -> None:
        """Numbers of inference servers, read when they are asked for."""
        self.servers.labels("serving").set_function(num_serving)
        self.servers.labels("not_serving").set_function(lambda: num_found() - num_serving())

    def serve(self, host: str, port: int) -> None:
        """Answer Prometheus on a thread as long as the process lives. Raises OSError."""
        start_http_server(port, host, self.registry)


def _version() -> str:
    try:
        return version("tailrace")
    except PackageNotFoundError:  # an image holds the folders alone
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.exists() else "unknown"
