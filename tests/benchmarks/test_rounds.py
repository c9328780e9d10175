"""Rounds with two peers that are real processes without a model."""

import sys
from contextlib import contextmanager

import psutil
import pytest

from benchmarks import rounds
from benchmarks.peers.base import Model, Peer, Running
from benchmarks.processes import Child
from benchmarks.rounds import Results, run_rounds
from benchmarks.sizes import QUICK


class Sleeper(Peer):
    """A peer whose only process sleeps."""

    has_warm_up = False

    def __init__(self, name, weights, children):
        super().__init__(Model(gguf=None, folder=None))
        self.name, self.weights, self._children = name, weights, children

    @contextmanager
    def running(self, log):
        child = Child([sys.executable, "-c", "import time; time.sleep(60)"], log, {})
        self._children[self.name] = child
        yield Running(children={"server": child}, clients={}, ready_s=0.1)
        child.stop()


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """The states of all peers' processes at each measurement, filled by the fake scenarios."""
    children, states = {}, []

    class Scenarios:
        def __init__(self, running, *_):
            self._running = running

        def short(self):
            yield "short-1", self._look

        def _look(self):
            state = {name: psutil.Process(child.pid).status() for name, child in children.items()}
            mine = next(name for name, child in children.items() if child is self._running.children["server"])
            states.append((mine, {name for name, status in state.items() if status != psutil.STATUS_STOPPED}))
            return {"tokens_per_s": 1.0}

    monkeypatch.setattr(rounds, "Scenarios", Scenarios)
    monkeypatch.setattr(rounds, "_import_seconds", lambda: 0.0)
    monkeypatch.setattr(rounds, "log_path", lambda name, number: tmp_path / f"{name}.log")
    monkeypatch.setattr("benchmarks.peers.base._SETTLING_SECONDS", 0.0)
    return children, states


@pytest.mark.parametrize(("weights", "together"), [("int4", False), ("int8", True)])
def test_only_the_measured_peer_runs(seen, weights, together):
    children, states = seen
    peers = [Sleeper("one", "int4", children), Sleeper("two", weights, children)]
    run_rounds(peers, ["short"], QUICK, Results(), together=together)
    assert states == [("one", {"one"}), ("two", {"two"})]
    assert all(child.process.poll() is not None for child in children.values())
