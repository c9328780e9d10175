"""What every peer has in common: it is prepared once, and started for each round with its processes and its doors."""

import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import OUT_OF_TIME, Load, Outcome
from benchmarks.processes import BENCH, Child, PeerFailed

# Beyond a load's own limit: what a client needs to start and to write its answer.
_CLIENT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The files that hold the one model: equal weights, in the format that each peer reads."""

    gguf: Path
    folder: Path  # safetensors, converted from the GGUF file by Tailrace's loader


class Door(ABC):
    """A way to ask a running peer."""

    @abstractmethod
    def run(self, load: Load) -> Outcome:
        """Raises PeerFailed if the load was not answered in time."""


class Peer(ABC):
    """One row of the results."""

    name: str
    title: str
    weights: str  # "int4", "int8", "16-bit", or "" if it has none
    scenarios: tuple[str, ...] = ("short", "long", "turns", "arrival")
    is_alone = False  # no other peer is up beside it: it works also while nobody asks, or has no rival
    has_warm_up = True
    # Why a scenario has no meaning here, by its name; it stands in the results.
    not_applicable: dict[str, str] = {}

    def __init__(self, model: Model, python: Path = Path(sys.executable)) -> None:
        self.model = model
        self.python = python

    def prepare(self) -> None:
        """Install what is missing. Raises SetupFailed."""
        return

    def versions(self) -> dict[str, str]:
        return {}

    @abstractmethod
    @contextmanager
    def running(self, log: Path) -> Iterator["Running"]:
        """Started and ready; stopped on leaving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A peer that is ready. `ready_s`: from its start to the moment when it said so."""

    children: Mapping[str, Child]
    doors: Mapping[str, Door]
    ready_s: float

    def pids(self) -> dict[str, int]:
        """Of the processes, by role."""
        return {role: child.pid for role, child in self.children.items()}

    def run(self, load: Load, door: str | None = None) -> Outcome:
        """Ask by `door`, by default the first. Raises PeerFailed if any reply failed."""
        outcome = self.doors[door or next(iter(self.doors))].run(load)
        for child in self.children.values():
            child.check()
        for record, request in zip(outcome.records, load.requests, strict=True):
            if record.error or not record.events:
                raise PeerFailed(record.error or "a reply without text")
            if record.completion_tokens != request.max_tokens:
                raise PeerFailed(f"a reply of {record.completion_tokens} tokens instead of {request.max_tokens}")
        return outcome


class ClientDoor(Door):
    """Asks a server from a process of its own, so that the client's work is told apart from the server's."""

    def __init__(self, module: str, options: dict[str, Any], log: Path) -> None:
        self._command = [sys.executable, "-m", module]
        self._options = options
        self._log = log

    def run(self, load: Load) -> Outcome:
        child = Child(self._command, self._log, {}, piped=True)
        try:
            question = json.dumps({**self._options, "load": asdict(load)}).encode()
            answer, _ = child.process.communicate(question, timeout=load.timeout_s + _CLIENT_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"{OUT_OF_TIME} {load.timeout_s:.0f} s") from None
        finally:
            child.stop()
        if child.process.returncode:
            raise PeerFailed(f"the client ended with {child.process.returncode}; see {self._log.name}")
        return Outcome.from_json(json.loads(answer))


class HttpDoor(ClientDoor):
    """`dialect`: how the server's events look (see client.py)."""

    def __init__(self, port: int, dialect: str, log: Path, **fields: Any) -> None:
        super().__init__("benchmarks.client", {"port": port, "dialect": dialect, "fields": fields}, log)


def log_path(name: str, round_number: int) -> Path:
    return BENCH / "logs" / f"{name}-round{round_number}.log"


class Stopwatch:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start
