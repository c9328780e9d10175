"""Collectors that read plain numbers and convert them to Prometheus metrics at each scrape.

They export values that change with every token, or that the engine's thread changes. A Counter or a Histogram of
prometheus_client would acquire a lock for each change, which takes microseconds.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from inference_server.engine.histogram import Histogram

if TYPE_CHECKING:
    from inference_server.engine.running import RunningEngine

NamedEngines = Callable[[], "Iterable[tuple[str, RunningEngine]]"]
_Numbers = tuple[tuple[str, str, "Callable[[RunningEngine], float]"], ...]

_GAUGES: _Numbers = (
    ("requests_running", "Sequences that have a slot", lambda engine: engine.num_running),
    ("requests_waiting", "Requests that wait for a slot", lambda engine: engine.num_waiting),
    (
        "batch_requests_waiting",
        "Batch requests that wait for a slot, a part of the waiting requests",
        lambda engine: engine.num_waiting_batch,
    ),
    (
        "slots",
        "Sequences that can run together; temporarily fewer after memory ran out",
        lambda engine: engine.num_slots,
    ),
    ("kv_blocks_in_use", "Blocks of the KV cache that sequences hold", lambda engine: engine.num_blocks_in_use),
    (
        "kv_cache_usage_ratio",
        "Share of the KV cache's blocks that sequences hold, 0 to 1",
        lambda engine: engine.num_blocks_in_use / engine.num_blocks,
    ),
)
_COUNTERS: _Numbers = (
    (
        "prefix_cache_queried_tokens",
        "Prompt tokens looked up in the prefix cache",
        lambda engine: engine.totals.queried_tokens,
    ),
    (
        "prefix_cache_hit_tokens",
        "Prompt tokens found in the prefix cache and not computed again",
        lambda engine: engine.totals.hit_tokens,
    ),
    (
        "preemptions",
        "Sequences preempted because blocks or memory ran out",
        lambda engine: engine.totals.preemptions,
    ),
    (
        "draft_tokens",
        "Draft tokens of speculative decoding that were computed",
        lambda engine: engine.totals.drafted_tokens,
    ),
    (
        "accepted_draft_tokens",
        "Draft tokens of speculative decoding that became tokens of replies",
        lambda engine: engine.totals.accepted_tokens,
    ),
)


class EngineState(Collector):
    """State and counters of the engines, each labelled with the first model that it serves."""

    def __init__(self, engines: NamedEngines) -> None:
        """Create the collector. `engines` returns pairs of a model's name and its engine."""
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        engines = list(self._engines())
        for kind, numbers in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, description, read in numbers:
                family = kind(f"tailrace_{name}", description, labels=["model"])
                for model, engine in engines:
                    family.add_metric([model], read(engine))
                yield family
        yield _histogram(
            "tailrace_step_tokens",
            "Tokens computed in one step of an engine: one per decoded sequence, draft tokens and prompt tokens",
            [(model, engine.step_tokens) for model, engine in engines],
        )


class LabeledHistograms(Collector):
    """A histogram metric with the label `model`, whose histograms have no lock."""

    def __init__(self, name: str, description: str, bounds: tuple[float, ...]) -> None:
        """Create the metric.

        Args:
            name: Full name of the metric.
            description: Its help text.
            bounds: Upper bounds of the buckets, ascending.
        """
        self._name = name
        self._description = description
        self._bounds = bounds
        self._histograms: dict[str, Histogram] = {}

    def of(self, model: str) -> Histogram:
        """Return the histogram of a model. The first call creates it with empty buckets."""
        if (histogram := self._histograms.get(model)) is None:
            histogram = self._histograms[model] = Histogram(self._bounds)
        return histogram

    def collect(self) -> Iterator[Metric]:
        """Yield the metric with its current values."""
        yield _histogram(self._name, self._description, list(self._histograms.items()))


class PlainCounter:
    """A counter without a lock; only one thread may add to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class LabeledCounters(Collector):
    """A counter metric with the labels `model` and `account`, whose counters have no lock."""

    def __init__(self, name: str, description: str) -> None:
        """Create the metric. `name`: its full name without `_total`; `description`: its help text."""
        self._name = name
        self._description = description
        self._counters: dict[tuple[str, str], PlainCounter] = {}

    def of(self, model: str, account: str) -> PlainCounter:
        """Return the counter of a model and an account. The first call creates it with the value 0."""
        return self._counters.setdefault((model, account), PlainCounter())

    def collect(self) -> Iterator[Metric]:
        """Yield the metric with its current values."""
        family = CounterMetricFamily(self._name, self._description, labels=["model", "account"])
        for labels, counter in list(self._counters.items()):
            family.add_metric(labels, counter.value)
        yield family


def _histogram(name: str, description: str, histograms: list[tuple[str, Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, description, labels=["model"])
    for model, histogram in histograms:
        bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
        # Copied first, because other threads continue to add: cumulative buckets must not decrease.
        counts = accumulate(histogram.counts.copy())
        family.add_metric([model], list(zip(bounds, counts, strict=True)), histogram.total)
    return family
