"""Runs the rounds: rival peers are started together and run each case in turn, one at a time.

While one peer runs, the others are paused, because some of them use CPU time while they wait for requests.

The order rotates from round to round, so that no peer is always first. After a failure, the run continues, and the
results contain the reason.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.environments import SetupFailed
from benchmarks.load.load import OUT_OF_TIME
from benchmarks.peers.base import Peer, Running, log_path
from benchmarks.processes import ROOT, PeerFailed, peak_mib
from benchmarks.report.statistics import Figures, over_rounds
from benchmarks.scenarios import Scenarios
from benchmarks.sizes import Size

# A case that takes longer than SLOW_SECONDS in SLOW_ROUNDS rounds is not repeated. Otherwise peers that queue requests
# would make the run last many hours. A single slow round does not count, because other processes may have caused it.
SLOW_SECONDS = 30.0
SLOW_ROUNDS = 2
_IMPORTS = "import torch, transformers"
# Names of the figures that are printed during the run.
_SHOWN = ["tokens_per_s", "ttft_p50_ms", "itl_p50_ms", "itl_p99_ms", "cpu_s_per_1000_tokens", "first_ttft_ms"]
_SHOWN += [
    "ttft_max_ms",
    "to_alone",
    "second_ttft_ms",
    "itl_during_p99_ms",
    "tokens_per_bridge_cpu_s",
    "cost_us_per_token",
]


class Results:
    """Figures by peer, case and round, and failures by peer and case."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, list[Figures]]] = {}
        self.failures: dict[str, dict[str, list[str]]] = {}
        self.slow: Counter[tuple[str, str]] = Counter()  # number of slow rounds by peer and case

    def note(self, peer: str, case: str, figures: Figures) -> None:
        """Record a round's figures for a case."""
        self.figures.setdefault(peer, {}).setdefault(case, []).append(figures)

    def fail(self, peer: str, case: str, reason: str) -> None:
        """Record a failure. Local paths are removed, because results are published."""
        reason = reason.replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
        reasons = self.failures.setdefault(peer, {}).setdefault(case, [])
        if reason not in reasons:
            reasons.append(reason)

    def reason_to_skip(self, peer: str, case: str) -> str | None:
        """Return the reason to skip a case, or None.

        A case is skipped if it, or the same case with fewer streams, timed out in an earlier round or in this one.
        """
        kind, streams = _kind_and_streams(case)
        for failed, reasons in self.failures.get(peer, {}).items():
            failed_kind, fewer = _kind_and_streams(failed)
            if kind == failed_kind and fewer <= streams and reasons[0].startswith(OUT_OF_TIME):
                return reasons[0] if failed == case else f"not tried: {failed} ran out of time"
        return None

    def summarised(self, peer: str) -> dict[str, Any]:
        """Return medians and spreads of every case of a peer, and its failures."""
        cases = self.figures.get(peer, {})
        return {
            "cases": {case: over_rounds(rounds) for case, rounds in cases.items()},
            "failures": self.failures.get(peer, {}),
        }


def _kind_and_streams(case: str) -> tuple[str, int]:
    """Split `short-8` into short and 8. `turns` becomes `turns` and 0."""
    kind, _, streams = case.rpartition("-")
    return (kind, int(streams)) if streams.isdigit() else (case, 0)


def prepare(peers: Iterable[Peer], results: Results) -> list[Peer]:
    """Install each peer. Returns the peers that are ready."""
    ready = []
    for peer in peers:
        try:
            peer.prepare()
        except (SetupFailed, PeerFailed) as error:
            log_progress(f"{peer.name} cannot be installed: {error}")
            results.fail(peer.name, "setup", str(error))
        else:
            ready.append(peer)
    return ready


def run_rounds(
    peers: list[Peer], scenarios: list[str], size: Size, results: Results, *, together: bool = False
) -> None:
    """Measure all scenarios on all peers, `size.rounds` times, into `results`.

    Args:
        peers: The peers that `prepare` returned.
        scenarios: Names of the methods of Scenarios.
        size: The amount of work.
        results: Receives the figures and the failures.
        together: Run peers with different weights in the same rounds too, so that all of them can be compared.
    """
    for number, rivals in enumerate(_groups_of_rivals(peers, together=together), start=1):
        runs = [_PeerRun(peer, size, results) for peer in rivals]
        try:
            for round_number in range(1, size.rounds + 1):
                if number == 1:
                    results.note("python", "imports", {"seconds": _import_seconds()})
                log_progress(f"round {round_number} of {size.rounds}: {', '.join(peer.name for peer in rivals)}")
                _round(runs, scenarios, round_number)
        finally:
            for run in runs:
                run.stop()


def _groups_of_rivals(peers: list[Peer], *, together: bool) -> list[list[Peer]]:
    """Group the rivals, which take turns in the same rounds, so that load changes on the machine affect all of them.

    A peer with `is_alone` is a group of its own.
    """
    groups: dict[str, list[Peer]] = {}
    for peer in peers:
        groups.setdefault(peer.name if peer.is_alone else "all" if together else peer.weights, []).append(peer)
    return list(groups.values())


def _round(runs: "list[_PeerRun]", scenarios: list[str], number: int) -> None:
    turned = (number - 1) % len(runs)
    order = runs[turned:] + runs[:turned]
    for run in order:
        run.begin(number)
    for run in order:
        run.warm_up()
    for scenario in scenarios:
        cases = [[(run, case) for case in run.cases(scenario)] for run in order]
        for row in zip_longest(*cases):
            for run, case in filter(None, row):
                run.measure(scenario, case)


class _PeerRun:
    """A peer with its processes. After a failure, the peer is started again for the next case.

    It might otherwise still be busy with the requests of the failed case.
    """

    def __init__(self, peer: Peer, size: Size, results: Results) -> None:
        self._peer, self._size, self._results = peer, size, results
        self._number = 0
        self._stack = ExitStack()
        self._running: Running | None = None
        self._is_out = False

    def begin(self, number: int) -> None:
        """Begin a round. A running peer is restarted, unless its start took SLOW_SECONDS or longer."""
        self._number = number
        if self._running is not None and self._running.ready_s < SLOW_SECONDS:
            self.stop()
        if self._running is None:
            with self._awake():
                if self._start():
                    assert self._running is not None
                    figures = {"ready_s": self._running.ready_s} | self._warmed_up()
                    self._results.note(self._peer.name, "start", figures)

    def warm_up(self) -> None:
        """Run the warm-up requests again: while the rivals were loaded, the system may have paged out this peer."""
        if self._running is not None:
            with self._awake():
                self._warmed_up()

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Continue the peer's processes for the block, and pause them at its end."""
        if self._running is not None:
            self._running.resume()
        try:
            yield
        finally:
            if self._running is not None:
                self._running.pause()

    def stop(self) -> None:
        """Stop the processes, and record their peak memory."""
        if self._running is not None:
            mib = peak_mib(self._running.pids())
            self._results.note(self._peer.name, "memory", {"peak_mib": mib})
        self._running = None
        self._stack.close()

    def cases(self, scenario: str) -> list[str]:
        """Return the names of the scenario's cases; empty if the peer is not running or the scenario does not apply."""
        name, peer = self._peer.name, self._peer
        if scenario in peer.not_applicable:
            self._results.fail(name, scenario, peer.not_applicable[scenario])
            return []
        if self._running is None or scenario not in peer.scenarios:
            return []
        return [case for case, _ in getattr(self._scenarios(), scenario)()]

    def measure(self, scenario: str, case: str) -> None:
        """Measure a case, and record its figures or the reason for its failure."""
        name = self._peer.name
        if reason := self._results.reason_to_skip(name, case):
            self._results.fail(name, case, reason)
            return
        if self._results.slow[name, case] == SLOW_ROUNDS:
            log_progress(f"  {case} {name}: not repeated, it takes more than {SLOW_SECONDS:.0f} s")
            return
        with self._awake():
            self._measure_awake(scenario, case)

    def _measure_awake(self, scenario: str, case: str) -> None:
        name = self._peer.name
        if self._running is None and not (self._start() and self._warmed_up()):
            return
        started = time.monotonic()
        try:
            figures: Figures = dict(getattr(self._scenarios(), scenario)())[case]()
        except PeerFailed as error:
            log_progress(f"  {case} {name}: failed: {error}")
            self._results.fail(name, case, str(error))
            self.stop()
            return
        if time.monotonic() - started > SLOW_SECONDS:
            self._results.slow[name, case] += 1
        self._results.note(name, case, figures)
        log_progress(f"  {case} {name}: {_in_short(figures)}")

    def _scenarios(self) -> Scenarios:
        assert self._running is not None
        return Scenarios(self._running, self._peer.model.folder, self._number, self._size)

    def _start(self) -> bool:
        if self._is_out:
            return False
        try:
            running = self._peer.running(log_path(self._peer.name, self._number))
            self._running = self._stack.enter_context(running)
        except PeerFailed as error:
            self._fail_to_start(error)
            return False
        log_progress(f"  {self._peer.name} ready after {self._running.ready_s:.1f} s")
        return True

    def _warmed_up(self) -> Figures:
        """Run the warm-up requests.

        Returns:
            The first request's time to first token in seconds, as `first_token_s`; 0 for a peer without a warm-up. Empty if
            the peer failed.
        """
        try:
            return {"first_token_s": self._scenarios().warm_up()} if self._peer.has_warm_up else {"first_token_s": 0.0}
        except PeerFailed as error:
            self._fail_to_start(error)
            return {}

    def _fail_to_start(self, error: PeerFailed) -> None:
        log_progress(f"  {self._peer.name} failed: {error}")
        self._results.fail(self._peer.name, "start", str(error))
        self._is_out = True
        self.stop()


def _import_seconds() -> float:
    """Return the seconds that importing torch and transformers takes. Every Python peer spends them at its start."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, timeout=120)
    return time.perf_counter() - start


def _in_short(figures: Figures) -> str:
    return ", ".join(f"{name} {figures[name]:.4g}" for name in _SHOWN if name in figures)


def log_progress(line: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
