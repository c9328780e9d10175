"""Runs Tailrace as a user does: server and bridge as two processes, one catalog entry at a time.

The only difference is that the server ignores end tokens (launch_server.py).
"""

import json
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.peers.base import HttpClient, Model, Peer, ProcessClient, Running, Stopwatch
from benchmarks.processes import BENCH, ROOT, Child, free_port, wait_for

_READY_SECONDS = 300.0
_CATALOG = ROOT / "inference_server" / "catalogs" / "default.toml"


class Tailrace(Peer):
    """Server and bridge with a single catalog entry.

    Several entries in one process would be several engines, each with its own threads.
    """

    scenarios: tuple[str, ...] = ("short", "long", "burst", "turns", "arrival", "neighbours")
    settings: ClassVar[dict[str, str]] = {}

    def __init__(self, model: Model, name: str, title: str, weights: str, entry: str) -> None:
        super().__init__(model)
        self.name, self.title, self.weights, self._entry = name, title, weights, entry

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("tailrace", "torch", "transformers", "bitsandbytes", "grpcio")}

    @contextmanager
    def running(self, log: Path) -> Iterator[Running]:
        with self._stack(log) as running:
            yield running

    @contextmanager
    def _stack(self, log: Path) -> Iterator[Running]:
        """Start a server and a bridge, and yield them when they are ready."""
        grpc_address, http_port = f"127.0.0.1:{free_port()}", free_port()
        environment = {
            **self.settings,
            **self.limits,
            "TAILRACE_CATALOG": str(one_entry_catalog(self._entry, self.name)),
            "TAILRACE_GRPC_ADDRESS": grpc_address,
            "TAILRACE_HTTP_ADDRESS": f"127.0.0.1:{http_port}",
        }
        watch, children = Stopwatch(), {}
        try:
            for role, module in (("server", "benchmarks.launch_server"), ("bridge", "http_bridge")):
                children[role] = Child([sys.executable, "-m", module], log, environment)
            wait_for(f"http://127.0.0.1:{http_port}/readyz", list(children.values()), _READY_SECONDS)
            ready_s = watch.seconds()
            yield Running(
                children=children,
                clients={
                    "rest": HttpClient(http_port, "workers-ai", log, model=self._entry),
                    "grpc": ProcessClient(
                        "benchmarks.load.grpc_client", {"address": grpc_address, "model": self._entry}, log
                    ),
                },
                ready_s=ready_s,
            )
        finally:
            for child in reversed(children.values()):
                child.stop()


class WithShare(Tailrace):
    """Tailrace with two more scenarios: replies with a JSON Schema, and HTTP beside gRPC, to show the bridge's cost."""

    scenarios = (*Tailrace.scenarios, "constraint", "share")


class BatchInvariant(Tailrace):
    """Tailrace with batch invariance, to measure the cost of logits that do not depend on the batch."""

    scenarios = ("short",)
    settings: ClassVar = {"TAILRACE_BATCH_INVARIANT": "true"}


class Pair(Tailrace):
    """Two stacks on the same cores: each has a server with threads for all cores, and a bridge."""

    scenarios = ("pair",)
    is_alone = True
    has_warm_up = False

    @contextmanager
    def running(self, log: Path) -> Iterator[Running]:
        with self._stack(log) as first, self._stack(log) as second:
            stacks = {"first": first, "second": second}
            children = {f"{name}-{role}": child for name, s in stacks.items() for role, child in s.children.items()}
            clients = {name: stack.clients["rest"] for name, stack in stacks.items()}
            yield Running(children=children, clients=clients, ready_s=first.ready_s)


class OneSlot(Tailrace):
    """Tailrace with a single slot, so that all other requests wait.

    It is measured with one format of weights, because the memory of a waiting request is the same for all formats.
    """

    scenarios = ("waiting",)
    is_alone = True
    settings: ClassVar = {
        "TAILRACE_MAX_RUNNING_SEQS": "1",
        "TAILRACE_MAX_WAITING_SEQS": "1000",
        "TAILRACE_PREFIX_CACHE": "off",
    }


def one_entry_catalog(entry: str, name: str, *, keeps_sampling: bool = False) -> Path:
    """Write a catalog file with one entry of the default catalog, and return its path.

    Args:
        entry: The entry's name.
        name: Name of the file.
        keeps_sampling: True if the entry keeps its sampling defaults. Other peers have no such defaults, so
            comparisons with them use False.
    """
    tables = tomllib.loads(_CATALOG.read_text(encoding="utf-8"))["models"]
    table = next(table for table in tables if table["name"] == entry)
    if not keeps_sampling:
        table.pop("sampling", None)
    path = BENCH / "catalogs" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[[models]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items()))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)
