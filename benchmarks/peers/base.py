"""Defines the base classes of peers. A peer is installed once. Its processes and its clients run in every round."""

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

from benchmarks.instruction_sets import InstructionSet
from benchmarks.load.load import OUT_OF_TIME, Load, Outcome
from benchmarks.processes import BENCH, Child, PeerFailed

# Added to a load's own time limit, to allow for the client's start-up and for writing its results.
_CLIENT_SECONDS = 30.0
# Time for a resumed peer to run the timers that expired while it was paused.
_SETTLING_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Files of the benchmark's only model, in the formats that the peers read."""

    gguf: Path
    folder: Path  # safetensors, converted from the GGUF file by Tailrace's loader


class Client(ABC):
    """Sends loads to a running peer over one protocol."""

    @abstractmethod
    def run(self, load: Load) -> Outcome:
        """Return the load's outcome. Raises PeerFailed if it did not arrive in time."""


class Peer(ABC):
    """A row of the results: a server or an engine that is measured."""

    name: str
    title: str
    weights: str  # weight format: "int4", "int8", "16-bit", or "" for a peer without a model
    scenarios: tuple[str, ...] = ("short", "long", "burst", "turns", "arrival")
    is_alone = False  # runs without other peers, because it uses CPU while idle or has no rival
    has_warm_up = True
    # Reasons why scenarios do not apply, by scenario. The results contain these reasons.
    not_applicable: dict[str, str] = {}

    def __init__(self, model: Model, python: Path = Path(sys.executable)) -> None:
        self.model = model
        self.python = python
        self.limits: dict[str, str] = {}  # environment variables that limit the peer's instruction set

    def limit_to(self, limit: InstructionSet) -> None:
        """Limit the peer to the instructions of `limit`. Must be called before `prepare`."""
        self.limits = limit.environment()

    def prepare(self) -> None:
        """Install missing dependencies. Raises SetupFailed."""
        return

    def versions(self) -> dict[str, str]:
        """Return the versions of the peer's software, by name."""
        return {}

    @abstractmethod
    @contextmanager
    def running(self, log: Path) -> Iterator["Running"]:
        """Start the peer, and yield it when it is ready. Stops the peer at the end of the block. Raises PeerFailed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A peer that is ready. `ready_s` are the seconds from its start until it was ready."""

    children: Mapping[str, Child]
    clients: Mapping[str, Client]
    ready_s: float

    def pids(self) -> dict[str, int]:
        """Return the ids of the processes, by role."""
        return {role: child.pid for role, child in self.children.items()}

    def pause(self, client: str | None = None) -> None:
        """Suspend the processes, so that they do not disturb a measurement.

        Args:
            client: Suspend only the processes whose role begins with this name of a client. None: all processes.
        """
        for role, child in self.children.items():
            if client is None or role.startswith(client):
                child.pause()

    def resume(self) -> None:
        """Continue all processes, and wait until the timers that expired during the pause have run."""
        for child in self.children.values():
            child.resume()
        time.sleep(_SETTLING_SECONDS)

    def run(self, load: Load, client: str | None = None) -> Outcome:
        """Send a load through `client`, by default the first one.

        Raises:
            PeerFailed: A process ended, or a reply failed or does not have the requested length.
        """
        outcome = self.clients[client or next(iter(self.clients))].run(load)
        for child in self.children.values():
            child.check()
        for record, request in zip(outcome.records, load.requests, strict=True):
            if record.error or not record.events:
                raise PeerFailed(record.error or "a reply without text")
            if record.completion_tokens != request.max_tokens:
                raise PeerFailed(f"a reply of {record.completion_tokens} tokens instead of {request.max_tokens}")
        return outcome


class ProcessClient(Client):
    """Sends loads from a separate process, so that the client's CPU time is measured separately."""

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


class HttpClient(ProcessClient):
    """Sends loads over HTTP. `dialect` is the format of the server's requests and events (see load/dialects.py)."""

    def __init__(self, port: int, dialect: str, log: Path, **fields: Any) -> None:
        super().__init__("benchmarks.load.client", {"port": port, "dialect": dialect, "fields": fields}, log)


def log_path(name: str, round_number: int) -> Path:
    """Return the log file of a peer's processes in a round."""
    return BENCH / "logs" / f"{name}-round{round_number}.log"


class Stopwatch:
    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start
