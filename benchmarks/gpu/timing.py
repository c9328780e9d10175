"""Measures durations of kernels, and the bandwidth that a copy reaches. Results are in seconds and bytes per second."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.checks import Setup

Call = Callable[[], Any]


def record_graph(setup: Setup, call: Call) -> torch.cuda.CUDAGraph:
    """Record `call` as a CUDA graph, after two runs on a side stream.

    Libraries such as cuBLAS initialise at first use, which must not happen during the recording.
    """
    stream = torch.cuda.Stream(setup.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(setup.device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream(setup.device).wait_stream(stream)
    setup.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def seconds_per_call(setup: Setup, calls: list[Call], *, seconds: float = 0.03, rounds: int = 3) -> float:
    """Return the mean duration of a call in the fastest round.

    On a GPU, the calls are recorded in one CUDA graph, so that the host's time does not count. To measure reads from
    memory, pass calls whose inputs together exceed the GPU's L2 cache.

    Args:
        setup: The device.
        calls: The calls of a round, in this order; they are repeated.
        seconds: The approximate duration of a round.
        rounds: Number of rounds.
    """

    def once() -> None:
        for call in calls:
            call()

    if setup.is_tiny:
        seconds, rounds = 0.0, 1
    run = record_graph(setup, once).replay if setup.is_cuda else once
    run()
    first = timed(setup, run)
    repeats = max(1, min(2000, int(seconds / max(first, 1e-6))))

    def many() -> None:
        for _ in range(repeats):
            run()

    return min(timed(setup, many) for _ in range(rounds)) / repeats / len(calls)


def timed(setup: Setup, call: Call) -> float:
    """Return the duration of one call, measured on the device if it is a GPU."""
    if not setup.is_cuda:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    setup.wait()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def host_seconds(setup: Setup, call: Call) -> float:
    """Return the duration of one call and of the work that it queues, measured by the host."""
    setup.wait()
    start = time.perf_counter()
    call()
    setup.wait()
    return time.perf_counter() - start


def copy_bandwidth(setup: Setup) -> float:
    """Return the bytes per second that a copy within the device's memory reads and writes."""
    size = 2**30 if setup.is_cuda else 2**26
    source = torch.zeros(size, dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    return 2 * size / seconds_per_call(setup, [lambda: target.copy_(source)], rounds=5)


def l2_bytes(setup: Setup) -> int:
    """Return the size of the GPU's L2 cache; 60 MB if torch does not report it, and 0 on a CPU."""
    if not setup.is_cuda:
        return 0
    return int(getattr(torch.cuda.get_device_properties(setup.device), "L2_cache_size", 0)) or 60_000_000
