"""Starts an inference server for a measurement over gRPC, waits for its models, and reads its CPU time."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from benchmarks.peers.tailrace import one_entry_catalog
from benchmarks.processes import LOGS, Child, PeerFailed, free_port
from tailrace.v1 import inference_pb2 as pb

if TYPE_CHECKING:  # the stubs of grpc.aio exist for type checkers only
    from tailrace.v1.inference_pb2_grpc import InferenceServiceAsyncStub

READY_SECONDS = 300.0


@contextmanager
def running_server(model: str, name: str) -> Iterator[tuple[str, int]]:
    """Start a server that hosts one model of the default catalog and ignores end tokens.

    Yields its address and its process id.

    Args:
        model: Name of the entry. Its sampling defaults do not apply.
        name: Name of the catalog file and of the log.
    """
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "TAILRACE_CATALOG": str(one_entry_catalog(model, name)),
        "TAILRACE_GRPC_ADDRESS": address,
    }
    child = Child([sys.executable, "-m", "benchmarks.launch_server"], LOGS / f"{name}.log", environment)
    try:
        yield address, child.pid
    finally:
        child.stop()


async def wait_for_models(stub: "InferenceServiceAsyncStub") -> None:
    """Wait until the server's models are loaded. Raises PeerFailed after five minutes."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            await stub.ListModels(pb.ListModelsRequest())
            return
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.2)
    raise PeerFailed(f"no model is ready after {READY_SECONDS:.0f} s")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all live threads of a process, in seconds with a resolution of nanoseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9
