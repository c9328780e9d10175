"""`python -m benchmarks.replicas`: what a second inference server adds, each pinned to one core, behind one bridge.

Bridge and client run on the last core in every run, so that the only difference is the second server. As many replies are
asked for at once as keep all slots of both taken to the end. Linux alone.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import machine
from benchmarks.load import Load, Request
from benchmarks.peers.base import HttpDoor
from benchmarks.peers.tailrace import one_entry_catalog
from benchmarks.processes import LOGS, Child, PeerFailed, free_port, wait_for
from benchmarks.statistics import Figures, summary

_ENTRY = "@cf/meta/llama-2-7b-chat-fp16"
_READY_SECONDS = 300.0
_PROMPTS = ("The history of the canal begins", "A list of rivers and their sources:", "Once there was a miller who")


def main() -> None:
    arguments = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two servers on separate cores need two cores")
    rounds: dict[str, list[Figures]] = {"1": [], "2": []}
    for number in range(arguments.rounds):
        for servers in (1, 2):
            figures = _measure(cores[:servers], cores[-1], arguments)
            rounds[str(servers)].append(figures)
            print(f"round {number + 1}, servers {servers}: {figures['tokens_per_s']:.0f} tokens/s", flush=True)
    rates = {servers: [figures["tokens_per_s"] for figures in found] for servers, found in rounds.items()}
    ratios = [two / one for one, two in zip(rates["1"], rates["2"], strict=True)]
    results = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "model": _ENTRY,
        "slots": arguments.slots,
        "requests": arguments.requests,
        "reply": arguments.reply,
        "rounds": rounds,
        "ratio": {"median": round(median(ratios), 3), "each": [round(ratio, 3) for ratio in ratios]},
    }
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"two servers to one: {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each of one and of two servers (default 3)")
    parser.add_argument("--slots", type=int, default=8, help="of each server (default 8)")
    parser.add_argument("--requests", type=int, default=96, help="replies asked for at once (default 96)")
    parser.add_argument("--reply", type=int, default=64, help="tokens of each (default 64)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/replicas.json"))
    return parser.parse_args()


def _measure(server_cores: list[int], other_core: int, arguments: argparse.Namespace) -> Figures:
    requests = [
        Request(text=f"{_PROMPTS[number % len(_PROMPTS)]} {number}", max_tokens=arguments.reply)
        for number in range(arguments.requests)
    ]
    with _stack(server_cores, other_core, arguments.slots) as door:
        door.run(Load(requests=requests[: len(server_cores) * 2], timeout_s=300.0))  # every page touched once
        outcome = door.run(Load(requests=requests, timeout_s=600.0))
    for record in outcome.records:
        if record.error or record.completion_tokens != arguments.reply:
            raise PeerFailed(record.error or f"a reply of {record.completion_tokens} tokens")
    return summary(outcome.records)


@contextmanager
def _stack(server_cores: list[int], other_core: int, slots: int) -> Iterator[HttpDoor]:
    """Servers, one on each of the cores, and a bridge before them, all ready."""
    log = LOGS / "replicas.log"
    addresses = [f"127.0.0.1:{free_port()}" for _ in server_cores]
    http_port = free_port()
    environment: dict[str, Any] = {
        "TAILRACE_CATALOG": str(one_entry_catalog(_ENTRY, "replicas")),
        "TAILRACE_MAX_RUNNING_SEQS": str(slots),
        "TAILRACE_HTTP_ADDRESS": f"127.0.0.1:{http_port}",
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    children = []
    try:
        for core, address in zip(server_cores, addresses, strict=True):
            command = _pinned(core, "benchmarks.launch_server")
            children.append(Child(command, log, environment | {"TAILRACE_GRPC_ADDRESS": address}))
        for address in addresses:  # a bridge of its own would be ready as soon as one of them is
            _wait_for_server(address, children)
        bridge = _pinned(other_core, "http_bridge")
        children.append(Child(bridge, log, environment | {"TAILRACE_GRPC_ADDRESS": ",".join(addresses)}))
        wait_for(f"http://127.0.0.1:{http_port}/readyz", children, _READY_SECONDS)
        with _only_on(other_core):
            yield HttpDoor(http_port, "workers-ai", log, model=_ENTRY)
    finally:
        for child in reversed(children):
            child.stop()


def _pinned(core: int, module: str) -> list[str]:
    return ["taskset", "--cpu-list", str(core), sys.executable, "-m", module]


@contextmanager
def _only_on(core: int) -> Iterator[None]:
    """This process, and the clients that it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wait_for_server(address: str, children: list[Child]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < deadline:
            for child in children:
                child.check()
            try:
                if health.Check(health_pb2.HealthCheckRequest(), timeout=2).status == 1:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.1)
    raise PeerFailed(f"no server is ready after {_READY_SECONDS:.0f} s")


if __name__ == "__main__":
    main()
