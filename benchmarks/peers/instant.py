"""Runs the bridge in front of an engine that needs no computing time (instant_server.py)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.base import HttpClient, Peer, ProcessClient, Running, Stopwatch
from benchmarks.processes import Child, free_port, wait_for

_READY_SECONDS = 60.0
_MODEL = "@cf/meta/llama-2-7b-chat-int8"


class Instant(Peer):
    name = "instant"
    title = "Tailrace's bridge over an instant engine"
    weights = ""
    is_alone = True
    has_warm_up = False
    scenarios = ("instant",)

    @contextmanager
    def running(self, log: Path) -> Iterator[Running]:
        address, port = f"127.0.0.1:{free_port()}", free_port()
        environment = {"TAILRACE_GRPC_ADDRESS": address, "TAILRACE_HTTP_ADDRESS": f"127.0.0.1:{port}"}
        watch, children = Stopwatch(), {}
        try:
            for role, module in (("server", "benchmarks.instant_server"), ("bridge", "http_bridge")):
                children[role] = Child([sys.executable, "-m", module], log, environment)
            wait_for(f"http://127.0.0.1:{port}/readyz", list(children.values()), _READY_SECONDS)
            clients = {
                "rest": HttpClient(port, "workers-ai", log, model=_MODEL),
                "grpc": ProcessClient("benchmarks.load.grpc_client", {"address": address, "model": _MODEL}, log),
            }
            yield Running(children=children, clients=clients, ready_s=watch.seconds())
        finally:
            for child in reversed(children.values()):
                child.stop()
