"""Prometheus metrics of the server: names, labels and buckets. Other modules change the values.

Every accepted request ends in exactly one of three ways: completed, failed (the client got an error) or cancelled (the
client cancelled it, or its deadline passed). Accepted minus ended requests are in flight. docs/metrics.md has a table.
"""

from collections.abc import Callable, Iterable

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

from inference_server.generation import FinishReason
from inference_server.observability.collectors import EngineState, LabeledCounters, LabeledHistograms, NamedEngines
from tailrace_shared.version import tailrace_version

ENDS = COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
UNKNOWN_MODEL = "unknown"
# Largest number of accounts with separate series. Clients choose the names, so the number must be limited.
MAX_ACCOUNTS = 100

_ENDED_HELP = (
    "Accepted requests by their end: completed, failed (the client received an error), cancelled (the client disconnected, or "
    "its deadline passed)"
)
_REFUSED_HELP = (
    "Refused requests by the reason in the contract's ErrorInfo, or cancelled: the client disconnected before acceptance. A "
    "model that is not in the catalog is unknown"
)
_GAPS_HELP = (
    "Time from one token of a reply to the next, one value for each; tokens sent together count with equal gaps"
)
_QUEUE_TIME_HELP = (
    "Time from acceptance to the slot, or to the end of a request that ended before; without batch requests"
)
_TTFT_HELP = "Time from the arrival of a request to its first token; without batch requests"

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_BETWEEN_TOKENS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10),
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """The metrics of one server, in a separate registry.

    The counters and histograms of requests have the label `model`; some have a second label.
    """

    def __init__(self) -> None:
        """Create the metrics. Those with labels have no series before `expect` or the first request."""
        # Otherwise each counter and histogram has a second series, `_created`, with the time of its creation.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("tailrace_build", "Version of the server; the value is 1", registry=self.registry).info(
            {"version": tailrace_version()}
        )
        self._accounts: set[str] = set()
        self._histograms: list[Histogram] = []
        self.accepted = self._counter("requests_accepted", "Requests accepted", "model")
        self.ended = self._counter("requests_ended", _ENDED_HELP, "model", "end")
        self.finished = self._counter(
            "requests_finished",
            "Completed requests by finish reason: stop, length, time_limit, tool_calls",
            "model",
            "finish_reason",
        )
        self.refused = self._counter("requests_refused", _REFUSED_HELP, "model", "reason")
        self.prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of requests that got a slot", "model", "account"
        )
        self.embedded_texts = self._counter("embedded_texts", "Texts of completed embedding requests", "model")
        self.generation_tokens = LabeledCounters(
            "tailrace_generation_tokens", "Tokens generated, counted as they are sent"
        )
        self.token_gaps = LabeledHistograms("tailrace_inter_token_latency_seconds", _GAPS_HELP, _BETWEEN_TOKENS)
        self.registry.register(self.generation_tokens)
        self.registry.register(self.token_gaps)
        self._add_histograms()

    def _add_histograms(self) -> None:
        self.first_token = self._histogram("time_to_first_token_seconds", _TTFT_HELP, _FIRST_TOKEN)
        self.latency = self._histogram(
            "e2e_request_latency_seconds", "Time from the arrival of a completed request to its end", _SECONDS
        )
        self.queue_time = self._histogram("request_queue_time_seconds", _QUEUE_TIME_HELP, _SECONDS)
        self.prefill_time = self._histogram(
            "request_prefill_time_seconds", "Time from the slot to the first token", _SECONDS
        )
        self.decode_time = self._histogram(
            "request_decode_time_seconds", "Time from the first token of a completed request to its last", _SECONDS
        )
        self.inference_time = self._histogram(
            "request_inference_time_seconds", "Time from the slot of a completed request to its last token", _SECONDS
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a completed request", _TOKENS
        )
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Reply tokens of a completed request", _TOKENS
        )

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"tailrace_{name}", description, labels, registry=self.registry)

    def _histogram(self, name: str, description: str, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"tailrace_{name}", description, ["model"], buckets=bounds, registry=self.registry)
        self._histograms.append(histogram)
        return histogram

    def expect(self, models: Iterable[str]) -> None:
        """Create the series of these models with the value 0.

        Prometheus' rate() does not include the first value of a series that did not exist before. Series with the
        labels `account` or `reason` are created only with their first value.
        """
        for model in models:
            self.accepted.labels(model)
            for end in ENDS:
                self.ended.labels(model, end)
            self.embedded_texts.labels(model)
            for reason in FinishReason:
                self.finished.labels(model, reason.value)
            for histogram in self._histograms:
                histogram.labels(model)
            self.token_gaps.of(model)

    def account(self, account: str) -> str:
        """Return the label of an account: its name for the first 100 accounts, then "other"; "none" without a name."""
        if not account:
            return "none"
        if account not in self._accounts:
            if len(self._accounts) >= MAX_ACCOUNTS:
                return "other"
            self._accounts.add(account)
        return account

    def watch(self, engines: NamedEngines) -> None:
        """Add the engines' state and counters. `engines` is called at each scrape, and returns (name, engine) pairs."""
        self.registry.register(EngineState(engines))

    def watch_utilization(self, level: Callable[[], float]) -> None:
        """Add a gauge of the load that is reported to load balancers; `level` is called at each scrape."""
        gauge = Gauge(
            "tailrace_utilization_ratio",
            "Load that is reported to load balancers: 0.2 idle, 1 full, more when requests wait",
            registry=self.registry,
        )
        gauge.set_function(level)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serve the metrics over HTTP on a separate thread, and return the function that stops it.

        Raises:
            OSError: The address is in use or not one of this machine.
        """
        server, thread = start_http_server(port, host, self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
