"""What is counted in plain numbers where it happens, and becomes Prometheus' only when somebody asks.

For what is counted for each token or on the model's thread: a Counter or a Histogram takes a lock and microseconds.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from inference_server.engine.histogram import Histogram

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from inference_server.engine.base import BaseEngine

NamedEngines = Callable[[], "Iterable[tuple[str, BaseEngine]]"]
_Numbers = tuple[tuple[str, str, "Callable[[BaseEngine], float]"], ...]

_GAUGES: _Numbers = (
    ("requests_running", "Sequences that have a slot", lambda engine: engine.num_running),
    ("requests_waiting", "Requests that wait for a slot", lambda engine: engine.num_waiting),
    ("slots", "Sequences that may run together; fewer after memory ran out", lambda engine: engine.num_slots),
    ("kv_blocks_in_use", "Blocks of the KV cache that sequences hold", lambda engine: engine.num_blocks_in_use),
    (
        "kv_cache_usage_ratio",
        "The part of the KV cache's blocks that sequences hold, 0 to 1",
        lambda engine: engine.num_blocks_in_use / engine.num_blocks,
    ),
)
_COUNTERS: _Numbers = (
    (
        "prefix_cache_queried_tokens",
        "Prompt tokens that were looked for in the prefix cache",
        lambda engine: engine.totals.queried_tokens,
    ),
    (
        "prefix_cache_hit_tokens",
        "Prompt tokens that were found there and not computed again",
        lambda engine: engine.totals.hit_tokens,
    ),
    (
        "preemptions",
        "Sequences that went back to wait because blocks or memory ran out",
        lambda engine: engine.totals.preemptions,
    ),
)


class EngineState(Collector):
    """Engines, each under the name of the first model that it hosts."""

    def __init__(self, engines: NamedEngines) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        engines = list(self._engines())
        for kind, numbers in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, description, read in numbers:
                family = kind(f"tailrace_{name}", description, labels=["model"])
                for model, engine in engines:
                    family.add_metric([model], read(engine))
                yield family
        yield _histogram(
            "tailrace_step_tokens",
            "Tokens computed in one step of an engine: one for each sequence that is decoded, and those of prompts",
            [(model, engine.step_tokens) for model, engine in engines],
        )


class Tallies(Collector):
    """A histogram with a tally for each model."""

    def __init__(self, name: str, description: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._description = description
        self._bounds = bounds
        self._tallies: dict[str, Histogram] = {}

    def of(self, model: str) -> Histogram:
        if (tally := self._tallies.get(model)) is None:
            tally = self._tallies[model] = Histogram(self._bounds)
        return tally

    def collect(self) -> Iterator[Metric]:
        yield _histogram(self._name, self._description, list(self._tallies.items()))


class Count:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Counts(Collector):
    """A counter with a plain number for each model and account."""

    def __init__(self, name: str, description: str) -> None:
        self._name = name
        self._description = description
        self._counts: dict[tuple[str, str], Count] = {}

    def of(self, model: str, account: str) -> Count:
        return self._counts.setdefault((model, account), Count())

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._description, labels=["model", "account"])
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count.value)
        yield family


def _histogram(name: str, description: str, tallies: list[tuple[str, Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, description, labels=["model"])
    for model, tally in tallies:
        bounds = [*(str(float(bound)) for bound in tally.bounds), "+Inf"]
        # Copied first: others go on adding, and a bucket may hold no fewer than the one before it.
        counts = accumulate(tally.counts.copy())
        family.add_metric([model], list(zip(bounds, counts, strict=True)), tally.total)
    return family
