"""Part 5: lists the kernels of one decode step at batch sizes 1 and 64, with their times from torch's profiler."""

from collections.abc import Callable
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import models, timing
from benchmarks.gpu.checks import Check, LeftOut, Note, Setup
from benchmarks.gpu.runners import MAX_SEQS, Sequences, make_runner

_STEPS = 5
_KERNELS = 15  # rows of the table
_NAME = 120  # longest kernel name, in characters


def _profile(setup: Setup, note: Note, int8: bool) -> None:
    model = models.make(setup, int8=int8)
    lengths = [120 + number for number in range(MAX_SEQS)]
    runner = make_runner(model, max_tokens=512)
    note("path", runner.path)
    for count in (1, 2) if setup.is_tiny else (1, MAX_SEQS):
        tokens = Sequences(runner, lengths[:count], model.config.vocab_size).tokens

        def step(tokens: Any = tokens) -> None:
            runner.decode(tokens)

        step()
        times = [timing.host_seconds(setup, step) for _ in range(3 if setup.is_tiny else 15)]
        note(f"batch {count}: ms_per_step", round(median(times) * 1e3, 3))
        note(f"batch {count}: kernels", table(setup, step))


def table(setup: Setup, step: Callable[[], None]) -> list[dict[str, Any]]:
    """Return name, calls and microseconds per step of the slowest kernels. The last row is the sum over all kernels.

    Raises:
        LeftOut: The profiler recorded no kernel.
    """
    num_steps = 1 if setup.is_tiny else _STEPS
    kind = ProfilerActivity.CUDA if setup.is_cuda else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        for _ in range(num_steps):
            step()
        setup.wait()
    rows = []
    for event in profiler.key_averages():
        total = event.self_device_time_total if setup.is_cuda else event.self_cpu_time_total
        if total > 0 and event.device_type.name.lower() == setup.device.type:
            rows.append({"name": event.key[:_NAME], "calls": event.count / num_steps, "us": total / num_steps})
    if not rows:
        raise LeftOut("the profiler recorded no kernel")
    rows.sort(key=lambda row: row["us"], reverse=True)
    rows = [*rows[:_KERNELS], {"name": "all", **{key: sum(row[key] for row in rows) for key in ("calls", "us")}}]
    return [{"name": row["name"], "calls": round(row["calls"], 1), "us": round(row["us"], 2)} for row in rows]


def _half(setup: Setup, note: Note) -> None:
    """Profile a decode step in 16 bits."""
    _profile(setup, note, int8=False)


def _int8(setup: Setup, note: Note) -> None:
    """Profile a decode step in int8."""
    _profile(setup, note, int8=True)


CHECKS = [Check("16-bit step", 60, _half), Check("int8 step", 60, _int8)]
