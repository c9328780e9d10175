"""`python -m benchmarks.features.replicas`: measures the gain from a second inference server behind one bridge.

Each server runs on its own core. Bridge and clients run on the last core in every run, so that the only difference is
the second server. On a machine with two cores, the second server shares that core with them. By default, there are
more clients than the two servers have slots. Requires Linux.
"""

import argparse
import asyncio
import itertools
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
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import machine
from benchmarks.peers.tailrace import one_entry_catalog
from benchmarks.processes import LOGS, Child, PeerFailed, free_port, wait_for

_ENTRY = "@cf/meta/llama-2-7b-chat-fp16"
_READY_SECONDS = 300.0
_WARM_UP_SECONDS = 8.0
_PROMPTS = ("The history of the canal begins", "A list of rivers and their sources:", "Once there was a miller who")


def main() -> None:
    arguments = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two servers on separate cores need two cores")
    rounds: dict[str, list[dict[str, float]]] = {"1": [], "2": []}
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
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "reply": arguments.reply,
        "rounds": rounds,
        "ratio": {"median": round(median(ratios), 3), "each": [round(ratio, 3) for ratio in ratios]},
    }
    path = arguments.output or machine.results_folder() / f"{datetime.now(UTC):%Y-%m-%d}-replicas.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"two servers to one: {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features.replicas", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each of one and of two servers (default 3)")
    parser.add_argument("--slots", type=int, default=8, help="slots of each server (default 8)")
    parser.add_argument(
        "--clients", type=int, default=32, help="clients that send one request after the other (default 32)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds of measurement, after a warm-up (default 20)"
    )
    parser.add_argument("--reply", type=int, default=64, help="tokens of each reply (default 64)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def _measure(server_cores: list[int], other_core: int, arguments: argparse.Namespace) -> dict[str, float]:
    with _stack(server_cores, other_core, arguments.slots) as url:
        return asyncio.run(_load(url, arguments))


async def _load(url: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run clients that send one request after the other. Returns the number of replies and the tokens/s.

    Counts the replies that end within the measured time, including replies that began before it. The measured time ends
    with the last reply.
    """
    ends: list[tuple[float, int]] = []
    limits = httpx.Limits(max_connections=arguments.clients)
    async with httpx.AsyncClient(timeout=300, limits=limits, trust_env=False) as http:
        clients = [
            asyncio.create_task(_client(http, url, number, arguments.reply, ends))
            for number in range(arguments.clients)
        ]
        await asyncio.sleep(_WARM_UP_SECONDS + arguments.seconds)
        for client in clients:
            client.cancel()
        results = await asyncio.gather(*clients, return_exceptions=True)
    for result in results:
        if not isinstance(result, asyncio.CancelledError):
            raise PeerFailed(f"a client ended: {result!r}")
    until = max(end for end, _ in ends)
    counted = [tokens for end, tokens in ends if end > until - arguments.seconds]
    return {"replies": len(counted), "tokens_per_s": round(sum(counted) / arguments.seconds, 1)}


async def _client(http: httpx.AsyncClient, url: str, number: int, reply: int, ends: list[tuple[float, int]]) -> None:
    for turn in itertools.count():
        prompt = f"{_PROMPTS[turn % len(_PROMPTS)]} {number} {turn}"
        answer = await http.post(url, json={"prompt": prompt, "raw": True, "max_tokens": reply})
        ends.append((time.monotonic(), answer.raise_for_status().json()["result"]["usage"]["completion_tokens"]))


@contextmanager
def _stack(server_cores: list[int], other_core: int, slots: int) -> Iterator[str]:
    """Start a server on each of the cores and a bridge in front of them. Yields the URL for run requests."""
    log = LOGS / "replicas.log"
    addresses = [f"127.0.0.1:{free_port()}" for _ in server_cores]
    http_port = free_port()
    environment: dict[str, Any] = {
        "TAILRACE_CATALOG": str(one_entry_catalog(_ENTRY, "replicas")),
        "TAILRACE_MAX_RUNNING_SEQS": str(slots),
        "TAILRACE_HTTP_ADDRESS": f"127.0.0.1:{http_port}",
        "OMP_NUM_THREADS": "1",
    }
    children = []
    try:
        for core, address in zip(server_cores, addresses, strict=True):
            command = _pinned(core, "benchmarks.launch_server")
            children.append(Child(command, log, environment | {"TAILRACE_GRPC_ADDRESS": address}))
        for address in addresses:  # all servers, because the bridge is ready as soon as one server is
            _wait_for_server(address, children)
        bridge = _pinned(other_core, "http_bridge")
        children.append(Child(bridge, log, environment | {"TAILRACE_GRPC_ADDRESS": ",".join(addresses)}))
        wait_for(f"http://127.0.0.1:{http_port}/readyz", children, _READY_SECONDS)
        with _only_on(other_core):
            yield f"http://127.0.0.1:{http_port}/client/v4/accounts/bench/ai/run/{_ENTRY}"
    finally:
        for child in reversed(children):
            child.stop()


def _pinned(core: int, module: str) -> list[str]:
    return ["taskset", "--cpu-list", str(core), sys.executable, "-m", module]


@contextmanager
def _only_on(core: int) -> Iterator[None]:
    """Run this process, and the clients that it starts, on one core."""
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
