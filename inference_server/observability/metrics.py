"""What the server counts, for Prometheus. Knows names and labels; knows nothing of when something is counted.

Every accepted request ends in exactly one of three ways: completed, failed (the client was told an error), cancelled (the
client left, or its deadline passed). Accepted requests less ended ones are those in flight. deploy/METRICS.md has a table.
"""

import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
from inference_server.observability.collectors import Counts, EngineState, NamedEngines, Tallies

ENDS = COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
UNKNOWN_MODEL = "unknown"
# Accounts that have series of their own; anybody may name any number of them.
MAX_ACCOUNTS = 100

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_BETWEEN_TOKENS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10),
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    def __init__(self) -> None:
        # Each counter and histogram would have one more series, of the moment it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("tailrace_build", "What runs here", registry=self.registry).info({"version": _version()})
        self._accounts: set[str] = set()
        self._histograms: list[Histogram] = []
        self.accepted = self._counter("requests_accepted", "Requests let in", "model")
        self.ended = self._counter("requests_ended", "Accepted requests by their end", "model", "end")
        self.finished = self._counter("requests_finished", "Completed requests by the reason", "model", "finish_reason")
        self.refused = self._counter(
            "requests_refused", "Requests not let in, by the reason of the refusal", "model", "reason"
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens", "Tokens of the prompts of requests that got a slot", "model", "account"
        )
        self.generation_tokens = Counts("tailrace_generation_tokens", "Tokens generated")
        self.token_gaps = Tallies(
            "tailrace_inter_token_latency_seconds", "From one token of a reply to the next", _BETWEEN_TOKENS
        )
        self.registry.register(self.generation_tokens)
        self.registry.register(self.token_gaps)
        self._add_histograms()

    def _add_histograms(self) -> None:
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From the arrival of a request to its first token", _FIRST_TOKEN
        )
        self.latency = self._histogram(
            "e2e_request_latency_seconds", "From the arrival of a request to its end, of completed ones", _SECONDS
        )
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "How long a request waited for a slot", _SECONDS
        )
        self.prefill_time = self._histogram(
            "request_prefill_time_seconds", "From the slot to the first token", _SECONDS
        )
        self.decode_time = self._histogram(
            "request_decode_time_seconds", "From the first token to the last, of completed requests", _SECONDS
        )
        self.inference_time = self._histogram(
            "request_inference_time_seconds", "From the slot to the last token, of completed requests", _SECONDS
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Tokens of a completed request's prompt", _TOKENS
        )
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens of a completed request's reply", _TOKENS
        )

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"tailrace_{name}", description, labels, registry=self.registry)

    def _histogram(self, name: str, description: str, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"tailrace_{name}", description, ["model"], buckets=bounds, registry=self.registry)
        self._histograms.append(histogram)
        return histogram

    def expect(self, models: Iterable[str]) -> None:
        """Series begin with 0: a rate does not see the first of what was not there before."""
        for model in models:
            self.accepted.labels(model)
            for end in ENDS:
                self.ended.labels(model, end)
            for reason in FinishReason:
                self.finished.labels(model, reason.value)
            for histogram in self._histograms:
                histogram.labels(model)
            self.token_gaps.of(model)

    def account(self, account: str) -> str:
        """The label of an account: its name for the first 100, then "other", and "none" for none."""
        if not account:
            return "none"
        if account not in self._accounts:
            if len(self._accounts) >= MAX_ACCOUNTS:
                return "other"
            self._accounts.add(account)
        return account

    def watch(self, engines: NamedEngines) -> None:
        """State and counters of engines, each under the name of its first model, read when they are asked for."""
        self.registry.register(EngineState(engines))

    def watch_utilization(self, level: Callable[[], float]) -> None:
        """The number that balancers are told, read when it is asked for."""
        gauge = Gauge("tailrace_utilization_ratio", "The load that balancers are told", registry=self.registry)
        gauge.set_function(level)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answer Prometheus on a thread until the function that comes back is called. Raises OSError."""
        server, thread = start_http_server(port, host, self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


def _version() -> str:
    try:
        return version("tailrace")
    except PackageNotFoundError:  # an image holds the folders alone
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.exists() else "unknown"
