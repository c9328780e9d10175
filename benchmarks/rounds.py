"""Rounds: rivals run side by side and are asked each case in turn, one at a time; the order turns from round to round, so
that none is always first. What fails stands in the results with its reason, and the run goes on."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.environments import SetupFailed
from benchmarks.load import OUT_OF_TIME
from benchmarks.peers.base import Peer, Running, log_path
from benchmarks.processes import ROOT, PeerFailed, peak_mib
from benchmarks.scenarios import Questions, Size
from benchmarks.statistics import Figures, over_rounds

# What takes longer twice is not repeated: peers that queue would make a run of many hours. Once may be the machine's doing.
SLOW_SECONDS = 30.0
SLOW_ROUNDS = 2
_IMPORTS = "import torch, transformers"
# Of a case's figures, those that go by while it runs.
_SHOWN = ["tokens_per_s", "ttft_p50_ms", "itl_p50_ms", "itl_p99_ms", "cpu_s_per_1000_tokens", "first_ttft_ms"]
_SHOWN += ["second_ttft_ms", "itl_during_p99_ms", "tokens_per_bridge_cpu_s", "cost_us_per_token"]


class Results:
    """Figures by peer, case and round, and failures by peer and case."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, list[Figures]]] = {}
        self.failures: dict[str, dict[str, list[str]]] = {}
        self.slow: Counter[tuple[str, str]] = Counter()  # rounds by peer and case

    def note(self, peer: str, case: str, figures: Figures) -> None:
        self.figures.setdefault(peer, {}).setdefault(case, []).append(figures)

    def fail(self, peer: str, case: str, reason: str) -> None:
        """Reasons are published: they name no folder of this machine."""
        reason = reason.replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
        reasons = self.failures.setdefault(peer, {}).setdefault(case, [])
        if reason not in reasons:
            reasons.append(reason)

    def hopeless(self, peer: str, case: str) -> str | None:
        """Why a case need not be tried: it, or the same with fewer streams, ran out of time before."""
        kind, streams = _kind_and_streams(case)
        for failed, reasons in self.failures.get(peer, {}).items():
            failed_kind, fewer = _kind_and_streams(failed)
            if kind == failed_kind and fewer <= streams and reasons[0].startswith(OUT_OF_TIME):
                return reasons[0] if failed == case else f"not tried: {failed} ran out of time"
        return None

    def summarised(self, peer: str) -> dict[str, Any]:
        cases = self.figures.get(peer, {})
        return {
            "cases": {case: over_rounds(rounds) for case, rounds in cases.items()},
            "failures": self.failures.get(peer, {}),
        }


def _kind_and_streams(case: str) -> tuple[str, int]:
    """`short-8` to short and 8; `turns` to itself and 0."""
    kind, _, streams = case.rpartition("-")
    return (kind, int(streams)) if streams.isdigit() else (case, 0)


def prepare(peers: Iterable[Peer], results: Results) -> list[Peer]:
    """Install what the peers need; those that are ready."""
    ready = []
    for peer in peers:
        try:
            peer.prepare()
        except (SetupFailed, PeerFailed) as error:
            tell(f"{peer.name} cannot be installed: {error}")
            results.fail(peer.name, "setup", str(error))
        else:
            ready.append(peer)
    return ready


def run_rounds(peers: list[Peer], scenarios: list[str], size: Size, results: Results) -> None:
    for number, company in enumerate(_companies(peers), start=1):
        seats = [_Seat(peer, size, results) for peer in company]
        try:
            for round_number in range(1, size.rounds + 1):
                if number == 1:
                    results.note("python", "imports", {"seconds": _import_seconds()})
                tell(f"round {round_number} of {size.rounds}: {', '.join(peer.name for peer in company)}")
                _round(seats, scenarios, round_number)
        finally:
            for seat in seats:
                seat.stop()


def _companies(peers: list[Peer]) -> list[list[Peer]]:
    """Rivals, who are up at the same time and are asked case by case in turn: what the machine does meanwhile, both meet."""
    companies: dict[str, list[Peer]] = {}
    for peer in peers:
        companies.setdefault(peer.name if peer.is_alone else peer.weights, []).append(peer)
    return list(companies.values())


def _round(seats: "list[_Seat]", scenarios: list[str], number: int) -> None:
    turned = (number - 1) % len(seats)
    order = seats[turned:] + seats[:turned]
    for seat in order:
        seat.begin(number)
    for seat in order:
        seat.wake()
    for scenario in scenarios:
        cases = [[(seat, case) for case in seat.cases(scenario)] for seat in order]
        for row in zip_longest(*cases):
            for seat, case in filter(None, row):
                seat.measure(scenario, case)


class _Seat:
    """One peer, its processes while they run. After a failure it is started again for the next case: it may be busy still
    with what nobody waits for."""

    def __init__(self, peer: Peer, size: Size, results: Results) -> None:
        self._peer, self._size, self._results = peer, size, results
        self._number = 0
        self._stack = ExitStack()
        self._running: Running | None = None
        self._is_out = False

    def begin(self, number: int) -> None:
        """A round; whoever starts quickly does so anew."""
        self._number = number
        if self._running is not None and self._running.ready_s < SLOW_SECONDS:
            self.stop()
        if self._running is None and self._start():
            assert self._running is not None
            self._results.note(self._peer.name, "start", {"ready_s": self._running.ready_s} | self._warmed_up())

    def wake(self) -> None:
        """A few tokens: while its rivals were loaded, the machine may have put its memory aside."""
        if self._running is not None:
            self._warmed_up()

    def stop(self) -> None:
        if self._running is not None:
            mib = peak_mib(self._running.pids())
            self._results.note(self._peer.name, "memory", {"peak_mib": mib})
        self._running = None
        self._stack.close()

    def cases(self, scenario: str) -> list[str]:
        name, peer = self._peer.name, self._peer
        if scenario in peer.not_applicable:
            self._results.fail(name, scenario, peer.not_applicable[scenario])
            return []
        if self._running is None or scenario not in peer.scenarios:
            return []
        return [case for case, _ in getattr(self._questions(), scenario)()]

    def measure(self, scenario: str, case: str) -> None:
        name = self._peer.name
        if reason := self._results.hopeless(name, case):
            self._results.fail(name, case, reason)
            return
        if self._results.slow[name, case] == SLOW_ROUNDS:
            tell(f"  {case} {name}: not repeated, it takes more than {SLOW_SECONDS:.0f} s")
            return
        if self._running is None and not (self._start() and self._warmed_up()):
            return
        started = time.monotonic()
        try:
            figures: Figures = dict(getattr(self._questions(), scenario)())[case]()
        except PeerFailed as error:
            tell(f"  {case} {name}: failed: {error}")
            self._results.fail(name, case, str(error))
            self.stop()
            return
        if time.monotonic() - started > SLOW_SECONDS:
            self._results.slow[name, case] += 1
        self._results.note(name, case, figures)
        tell(f"  {case} {name}: {_in_short(figures)}")

    def _questions(self) -> Questions:
        assert self._running is not None
        return Questions(self._running, self._peer.model.folder, self._number, self._size)

    def _start(self) -> bool:
        if self._is_out:
            return False
        try:
            running = self._peer.running(log_path(self._peer.name, self._number))
            self._running = self._stack.enter_context(running)
        except PeerFailed as error:
            self._fail_to_start(error)
            return False
        tell(f"  {self._peer.name} ready after {self._running.ready_s:.1f} s")
        return True

    def _warmed_up(self) -> Figures:
        """Empty if that failed."""
        try:
            return {"first_token_s": self._questions().warm_up()} if self._peer.has_warm_up else {"first_token_s": 0.0}
        except PeerFailed as error:
            self._fail_to_start(error)
            return {}

    def _fail_to_start(self, error: PeerFailed) -> None:
        tell(f"  {self._peer.name} failed: {error}")
        self._results.fail(self._peer.name, "start", str(error))
        self._is_out = True
        self.stop()


def _import_seconds() -> float:
    """What a process in Python pays before it can do anything with a model."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, timeout=120)
    return time.perf_counter() - start


def _in_short(figures: Figures) -> str:
    return ", ".join(f"{name} {figures[name]:.4g}" for name in _SHOWN if name in figures)


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
