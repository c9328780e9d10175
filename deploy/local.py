"""`make run`: server and bridge on this machine, as two processes; prints the curl to try once both are ready.

Ctrl-C and SIGTERM stop both: the bridge first, so that it still gets the ends of its replies, then the server.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

_READY_POLL_SECONDS = 0.2
_STOP_SECONDS = 45.0  # longer than both grace periods
_ROOT = Path(__file__).parent.parent


class _Stopped(Exception):
    """A signal asked for the end."""


def main() -> int:
    """Returns 0 after a signal, else the exit code of the process that ended by itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for module in ("inference_server", "http_bridge"):
            # A group of their own: Ctrl-C in a terminal reaches this process alone, which then stops both in order.
            command = [sys.executable, "-m", module]
            processes.append(subprocess.Popen(command, cwd=_ROOT, start_new_session=True))
        return _watch(processes)
    except _Stopped:
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _stop(processes)


def _on_signal(number: int, frame: object) -> None:
    raise _Stopped


def _watch(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait until one process ends; tell when both are ready."""
    started = time.monotonic()
    announced = False
    while True:
        for process in processes:
            if process.poll() is not None:
                return process.returncode or 1
        if not announced and _is_ready():
            announced = True
            _announce(time.monotonic() - started)
        time.sleep(_READY_POLL_SECONDS)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _http_address() -> str:
    """Where a client on this machine finds the bridge."""
    host, _, port = os.environ.get("TAILRACE_HTTP_ADDRESS", "127.0.0.1:8787").rpartition(":")
    return f"{'127.0.0.1' if host in ('0.0.0.0', '[::]', '') else host}:{port}"


def _is_ready() -> bool:
    with contextlib.suppress(OSError, ValueError):
        with urllib.request.urlopen(f"http://{_http_address()}/readyz", timeout=2.0) as response:
            return json.load(response) is not None
    return False


def _announce(seconds: float) -> None:
    token = os.environ.get("TAILRACE_API_TOKENS", "").split(",")[0].strip() or "any-token"
    print(
        f"""
Tailrace is ready after {seconds:.1f} s. Try it:

curl -N -X POST \\
  "http://{_http_address()}/client/v4/accounts/local/ai/run/@cf/meta/llama-2-7b-chat-int8" \\
  -H "Authorization: Bearer {token}" \\
  -H "Content-Type:application/json" \\
  -d '{{ "prompt": "where is new york?", "stream": true }}'

gRPC listens on {os.environ.get("TAILRACE_GRPC_ADDRESS", "127.0.0.1:50051")}. Ctrl-C stops both.
""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
