"""Runs peers without a server: a worker process reads loads from a pipe and runs them (workers/)."""

import json
import select
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.load.load import OUT_OF_TIME, Load, Outcome
from benchmarks.peers.base import Client, Model, Peer, Running, Stopwatch
from benchmarks.peers.tailrace import one_entry_catalog
from benchmarks.processes import Child, PeerFailed
from inference_server.__main__ import SPIN_COUNT

_READY_SECONDS = 300.0
_ANSWER_SECONDS = 30.0


class WorkerClient(Client):
    def __init__(self, child: Child) -> None:
        self._child = child

    def run(self, load: Load) -> Outcome:
        self.send(asdict(load))
        return Outcome.from_json(self.answer(load.timeout_s + _ANSWER_SECONDS))

    def send(self, value: dict[str, Any]) -> None:
        assert self._child.process.stdin is not None
        try:
            self._child.process.stdin.write(json.dumps(value).encode() + b"\n")
            self._child.process.stdin.flush()
        except BrokenPipeError:
            self._child.process.wait(5)
            self._child.check()

    def answer(self, timeout_s: float) -> dict[str, Any]:
        pipe = self._child.process.stdout
        assert pipe is not None
        deadline = time.monotonic() + timeout_s
        while not select.select([pipe], [], [], 1.0)[0]:
            self._child.check()
            if time.monotonic() > deadline:
                raise PeerFailed(f"{OUT_OF_TIME} {timeout_s:.0f} s")
        line = pipe.readline()
        if not line:
            self._child.process.wait(5)
            self._child.check()
        value: dict[str, Any] = json.loads(line)
        return value


@contextmanager
def _running(module: str, options: dict[str, Any], environment: Mapping[str, str], log: Path) -> Iterator[Running]:
    watch = Stopwatch()
    child = Child([sys.executable, "-m", f"benchmarks.workers.{module}"], log, environment, piped=True)
    try:
        client = WorkerClient(child)
        client.send(options)
        client.answer(_READY_SECONDS)
        yield Running(children={"process": child}, clients={"process": client}, ready_s=watch.seconds())
    finally:
        child.stop()


class Transformers(Peer):
    """transformers' own generation. `module` is "generate" or "continuous"."""

    def __init__(self, model: Model, name: str, title: str, weights: str, module: str, precision: str) -> None:
        super().__init__(model)
        self.name, self.title, self.weights = name, title, weights
        self._module, self._precision = module, precision
        self.is_alone = module == "continuous"  # the loop of continuous batching uses CPU while idle
        if module == "generate":
            self.not_applicable = {"arrival": "nothing can join a static batch"}

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("transformers", "torch", "bitsandbytes")}

    @contextmanager
    def running(self, log: Path) -> Iterator[Running]:
        options = {"folder": str(self.model.folder), "precision": self._precision}
        with _running(self._module, options, {**self.limits, "HF_HUB_OFFLINE": "1"}, log) as running:
            yield running


class BareEngine(Peer):
    """Tailrace's engine without gRPC and HTTP, to measure the cost of these two."""

    scenarios = ("share",)

    def __init__(self, model: Model, name: str, title: str, weights: str, entry: str) -> None:
        super().__init__(model)
        self.name, self.title, self.weights, self._entry = name, title, weights, entry

    @contextmanager
    def running(self, log: Path) -> Iterator[Running]:
        catalog = one_entry_catalog(self._entry, self.name)
        environment = {**self.limits, "TAILRACE_CATALOG": str(catalog), "GOMP_SPINCOUNT": SPIN_COUNT}
        with _running("engine", {}, environment, log) as running:
            yield running
