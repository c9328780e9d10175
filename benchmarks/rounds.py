"""Rounds: each peer in turn is started, asked and stopped; the order turns from round to round, so that none is always
first. What fails stands in the results with its reason, and the run goes on."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.environments import SetupFailed
from benchmarks.load import OUT_OF_TIME
from benchmarks.peers.base import Peer, Running, log_path
from benchmarks.processes import ROOT, MemoryWatch, PeerFailed
from benchmarks.scenarios import Questions, Size
from benchmarks.statistics import Figures, over_rounds

# What takes longer in the first round is not repeated: peers that queue would make a run of many hours.
ONCE_SECONDS = 30.0
_IMPORTS = "import torch, transformers"
# Of a case's figures, those that go by while it runs.
_SHOWN = ["tokens_per_s", "ttft_p50_ms", "itl_p50_ms", "itl_p99_ms", "cpu_s_per_1000_tokens", "first_ttft_ms"]
_SHOWN += ["second_ttft_ms", "itl_during_p99_ms", "tokens_per_bridge_cpu_s"]


class Results:
    """Figures by peer, case and round, and failures by peer and case."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, list[Figures]]] = {}
        self.failures: dict[str, dict[str, list[str]]] = {}
        self.slow: set[tuple[str, str]] = set()  # peer and case

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
    for number in range(1, size.rounds + 1):
        turned = (number - 1) % max(1, len(peers))
        results.note("python", "imports", {"seconds": _import_seconds()})
        for peer in peers[turned:] + peers[:turned]:
            tell(f"round {number} of {size.rounds}: {peer.name}")
            wanted = [name for name in scenarios if name in peer.scenarios and name not in peer.not_applicable]
            for name in set(scenarios) & set(peer.not_applicable):
                results.fail(peer.name, name, peer.not_applicable[name])
            turn = _Turn(peer, wanted, size, number, results)
            while not turn.is_over():
                turn.start()


class _Turn:
    """One peer's turn in one round. After a failure the peer is started again, for the cases that are left."""

    def __init__(self, peer: Peer, scenarios: list[str], size: Size, number: int, results: Results) -> None:
        self._peer = peer
        self._scenarios = scenarios
        self._size = size
        self._number = number
        self._results = results
        self._tried: set[str] = set()
        self._is_over = not scenarios

    def is_over(self) -> bool:
        return self._is_over

    def start(self) -> None:
        name = self._peer.name
        try:
            with self._peer.running(log_path(name, self._number)) as running:
                memory = MemoryWatch(running.pids())
                with memory.watching():
                    self._ask(running)
                self._results.note(name, "memory", {"peak_mib": memory.peak_mib})
        except PeerFailed as error:
            tell(f"  failed: {error}")
            self._results.fail(name, "start", str(error))
            self._is_over = True

    def _ask(self, running: Running) -> None:
        questions = Questions(running, self._peer.model.folder, self._number, self._size)
        figures: Figures = {"ready_s": running.ready_s}
        if "instant" not in self._peer.scenarios:
            figures["first_token_s"] = questions.warm_up()
        if not self._tried:
            self._results.note(self._peer.name, "start", figures)
        tell(f"  ready after {running.ready_s:.1f} s")
        for scenario in self._scenarios:
            for case, measure in getattr(questions, scenario)():
                if case not in self._tried and not self._measure(case, measure):
                    return
        self._is_over = True

    def _measure(self, case: str, measure: Callable[[], Figures]) -> bool:
        """False if it failed: then the peer may be busy still with what nobody waits for."""
        self._tried.add(case)
        if reason := self._results.hopeless(self._peer.name, case):
            self._results.fail(self._peer.name, case, reason)
            return True
        if (self._peer.name, case) in self._results.slow:
            tell(f"  {case}: not repeated, it takes more than {ONCE_SECONDS:.0f} s")
            return True
        started = time.monotonic()
        try:
            figures = measure()
        except PeerFailed as error:
            tell(f"  {case}: failed: {error}")
            self._results.fail(self._peer.name, case, str(error))
            return False
        if time.monotonic() - started > ONCE_SECONDS:
            self._results.slow.add((self._peer.name, case))
        self._results.note(self._peer.name, case, figures)
        tell(f"  {case}: {_in_short(figures)}")
        return True


def _import_seconds() -> float:
    """What a process in Python pays before it can do anything with a model."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, timeout=120)
    return time.perf_counter() - start


def _in_short(figures: Figures) -> str:
    return ", ".join(f"{name} {figures[name]:.4g}" for name in _SHOWN if name in figures)


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
