"""Measures the slowdown that busy neighbours cause: processes on the same cores, or a second engine under load."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from benchmarks.load.load import Load, Outcome
from benchmarks.peers.base import Running
from benchmarks.processes import LOGS, Child
from benchmarks.report.statistics import Figures, summary

# The code of a busy process. "yield" calls sched_yield in a loop, like waiting threads of OpenMP and vLLM. "spin" never
# yields the core.
KINDS = {"yield": "import os\nwhile True: os.sched_yield()", "spin": "while True: pass"}


@contextmanager
def busy(kind: str) -> Iterator[list[Child]]:
    """Run one busy process on each core that this process may use. `kind`: a key of KINDS."""
    children: list[Child] = []
    try:
        for core in sorted(os.sched_getaffinity(0)):
            code = f"import os\nos.sched_setaffinity(0, {{{core}}})\n{KINDS[kind]}"
            children.append(Child([sys.executable, "-c", code], LOGS / "neighbours.log", {}))
        yield children
    finally:
        for child in children:
            child.stop()


def together(running: Running, loads: Mapping[str, Load]) -> list[Outcome]:
    """Send the loads at the same time, each through its client. Returns the outcomes in the order of `loads`.

    Raises:
        PeerFailed: A reply failed.
    """
    with ThreadPoolExecutor(len(loads)) as pool:
        return list(pool.map(lambda item: running.run(item[1], item[0]), loads.items()))


def compared(alone: Outcome, beside: Sequence[Outcome]) -> Figures:
    """Return the tokens/s of an engine alone, those of the slowest engine beside neighbours, and the ratios of both."""
    rate = summary(alone.records)["tokens_per_s"]
    slowest = min(summary(outcome.records)["tokens_per_s"] for outcome in beside)
    return {
        "alone_tokens_per_s": rate,
        "tokens_per_s": slowest,
        "to_alone": slowest / rate,
        "times_slower": rate / slowest,
    }
