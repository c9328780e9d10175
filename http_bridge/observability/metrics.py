"""The bridge's Prometheus metrics: names, labels and buckets. docs/metrics.md documents them."""

from collections.abc import Callable, Iterable
from functools import partial
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

from tailrace_shared.version import tailrace_version

BatchStatus = Literal["queued", "running", "finished"]
BatchState = Literal["waiting", "running"]
BATCH_STATUSES: tuple[BatchStatus, ...] = get_args(BatchStatus)
BATCH_STATES: tuple[BatchState, ...] = get_args(BatchState)

_REQUESTS_HELP = "Requests by the status of their response; 499: the client disconnected before the response"

_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_FIRST_EVENT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)


class Metrics:
    """The metrics of one bridge, in a separate registry. Times are in seconds."""

    def __init__(self) -> None:
        # Without this call, each counter and histogram has one more series with its time of creation.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("tailrace_build", "Version of the bridge; the value is 1", registry=registry).info(
            {"version": tailrace_version()}
        )
        self.requests = Counter("tailrace_http_requests", _REQUESTS_HELP, ["route", "status"], registry=registry)
        self.clients_gone = Counter(
            "tailrace_http_clients_gone",
            "Clients that disconnected before their response was complete",
            ["route"],
            registry=registry,
        )
        self.in_flight = Gauge("tailrace_http_requests_in_flight", "Requests in progress", ["route"], registry=registry)
        self.duration = Histogram(
            "tailrace_http_request_duration_seconds",
            "From the headers of a request to the end of its response",
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
        self.connections = Gauge("tailrace_http_connections", "Open connections, idle ones included", registry=registry)
        self.connections_refused = Counter(
            "tailrace_http_connections_refused", "Connections beyond the limit, answered with 503", registry=registry
        )
        self.servers = Gauge(
            "tailrace_upstream_servers",
            "Inference servers by the state that they report: serving, not_serving",
            ["state"],
            registry=registry,
        )

        self.batches = Gauge(
            "tailrace_batches", "Batches by status: queued, running, finished", ["status"], registry=registry
        )
        self.batch_requests = Gauge(
            "tailrace_batch_requests", "Requests of batches by state: waiting, running", ["state"], registry=registry
        )
        self.batch_requests_ended = Counter(
            "tailrace_batch_requests_ended",
            "Requests of batches that ended, by result: success, error",
            ["result"],
            registry=registry,
        )

    def add_routes(self, labels: Iterable[str]) -> None:
        """Create the series of each route label with 0. A rate would miss the first event of a new series."""
        for label in labels:
            for family in (self.clients_gone, self.in_flight, self.duration, self.first_event):
                family.labels(label)

    def watch_servers(self, num_serving: Callable[[], int], num_found: Callable[[], int]) -> None:
        """Report the numbers of inference servers; both arguments are functions that are called at each scrape."""
        self.servers.labels("serving").set_function(num_serving)
        self.servers.labels("not_serving").set_function(lambda: num_found() - num_serving())

    def watch_batches(
        self, num_batches: Callable[[BatchStatus], int], num_requests: Callable[[BatchState], int]
    ) -> None:
        """Set the functions that count batches by status, and batch requests by state. Each scrape calls them."""
        for status in BATCH_STATUSES:
            self.batches.labels(status).set_function(partial(num_batches, status))
        for state in BATCH_STATES:
            self.batch_requests.labels(state).set_function(partial(num_requests, state))
        for result in ("success", "error"):
            self.batch_requests_ended.labels(result)

    def serve(self, host: str, port: int) -> None:
        """Serve the metrics over HTTP on a thread, until the process ends.

        Raises:
            OSError: The address cannot be used.
        """
        start_http_server(port, host, self.registry)
