"""What the server counts, for Prometheus. Knows names and labels; knows nothing of when something is counted.

Every accepted request ends in exactly one of three ways: completed, failed (the client was told an error), cancelled (the
client left, or its deadline passed). Accepted requests less ended ones are those in flight.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class Gauged(Protocol):
    """An engine's state at the moment."""

    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_blocks_in_use(self) -> int: ...


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.accepted = self._counter("requests_accepted", "Requests let in", "model")
        self.ended = self._counter("requests_ended", "Accepted requests by their end", "model", "end")
        self.refused = self._counter("requests_refused", "Requests not let in, by the reason of the refusal", "reason")

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"tailrace_{name}", description, labels, registry=self.registry)

    def watch(self, engines: Callable[[], Iterable[tuple[str, Gauged]]]) -> None:
        """Gauges of engines, each under the name of its first model, read when they are asked for."""
        self.registry.register(_Gauges(engines))

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


class _Gauges(Collector):
    def __init__(self, engines: Callable[[], Iterable[tuple[str, Gauged]]]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[GaugeMetricFamily]:
        engines = list(self._engines())
        gauges: tuple[tuple[str, str, Callable[[Gauged], int]], ...] = (
            ("requests_running", "Sequences that have a slot", lambda engine: engine.num_running),
            ("requests_waiting", "Requests that wait for a slot", lambda engine: engine.num_waiting),
            ("kv_blocks_in_use", "Blocks of the KV cache that sequences hold", lambda engine: engine.num_blocks_in_use),
        )
        for name, description, read in gauges:
            family = GaugeMetricFamily(f"tailrace_{name}", description, labels=["model"])
            for model, engine in engines:
                family.add_metric([model], read(engine))
            yield family
