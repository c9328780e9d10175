"""Measures the resources of processes (memory, file descriptors, threads), and reads the server's metrics."""

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.stack import Stack
from tests.support.observability.metrics import read_metrics

SERVICES = ("inference_server", "http_bridge")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Held:
    """Resources of one process."""

    rss: int  # bytes
    descriptors: int
    threads: int


def held(stack: Stack, service: str) -> Held:
    process = psutil.Process(stack.process(service).pid)
    with process.oneshot():
        return Held(process.memory_info().rss, process.num_fds(), process.num_threads())


def metrics(address: str) -> dict[str, float]:
    """Return the server's metrics, as sums by name, and by name and the value of one label."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(read_metrics(address)):
        for sample in family.samples:
            for name in (sample.name, *(f"{sample.name} {label}" for label in sample.labels.values())):
                values[name] = values.get(name, 0) + sample.value
    return values


async def settled_metrics(address: str, *, seconds: float = 20.0) -> dict[str, float]:
    """Return the server's metrics once no request is in flight and no counter of requests grows, or after `seconds`."""
    deadline = time.monotonic() + seconds
    before: list[float] = []
    while True:
        values = await asyncio.to_thread(metrics, address)
        accepted, ended, refused = (
            values.get(f"tailrace_requests_{end}_total", 0.0) for end in ("accepted", "ended", "refused")
        )
        is_idle = accepted == ended and not values["tailrace_kv_blocks_in_use"]
        if (is_idle and [accepted, refused] == before) or time.monotonic() > deadline:
            return values
        before = [accepted, refused]
        await asyncio.sleep(0.5)


def assert_alive(stack: Stack) -> None:
    for service in SERVICES:
        assert stack.process(service).poll() is None, f"{service} has ended:\n{stack.log(service)[-3000:]}"


@dataclass
class Memory:
    """Resident memory of both services over time."""

    stack: Stack
    samples: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: {name: [] for name in SERVICES})

    def sample(self) -> None:
        now = time.monotonic()
        for service, samples in self.samples.items():
            samples.append((now, held(self.stack, service).rss))

    def growth(self, service: str, *, after: float, window: float = 10.0) -> tuple[float, float]:
        """Return the largest growth over the first `window` seconds from `after` (monotonic time) on.

        The growth is a fraction of the first window's median, which is returned too, in MiB.
        """
        windows: dict[int, list[int]] = {}
        for moment, rss in self.samples[service]:
            if moment >= after:
                windows.setdefault(int((moment - after) / window), []).append(rss)
        first, *later = [statistics.median(values) for _, values in sorted(windows.items())]
        return max([0.0, *(value / first - 1 for value in later)]), first / MIB
