"""`tailrace serve`: server and bridge on this machine, as two processes; prints the curl to try once both are ready.

Ctrl-C and SIGTERM stop both: the bridge first, so that it still gets the ends of its replies, then the server. Each
finishes what it has accepted, within its own grace period; a second signal is passed on and cuts that short.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tailrace_cli.asking import HOW_TO_INSTALL, Failure

_POLL_SECONDS = 0.2
# What the client alone does not need.
_NEEDED = ("torch", "transformers", "starlette", "uvicorn")
# This machine is asked directly, whatever proxy leads out of it.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Process = subprocess.Popen[bytes]


class _Stopped(Exception):
    """A signal asked for the end."""


def serve() -> int:
    """Returns 0 after a signal, else the exit code of the process that ended by itself."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        names = ", ".join(missing)
        raise Failure(f"The services are not installed ({names} missing). {HOW_TO_INSTALL}")
    address = _http_address()
    if _is_ready(address):
        print(f"Something answers on {address} already; set TAILRACE_HTTP_ADDRESS to another address.", file=sys.stderr)
        return 1
    _on_signals(_stop_by_exception)
    processes: list[Process] = []
    try:
        for module in ("inference_server", "http_bridge"):
            # A session of its own: Ctrl-C in a terminal reaches this process alone, which then stops both in order.
            processes.append(subprocess.Popen([sys.executable, "-m", module], start_new_session=True))
        return _watch(processes, address)
    except _Stopped:
        return 0
    finally:
        _on_signals(lambda number, frame: _terminate(processes))
        for process in reversed(processes):
            _terminate([process])
            process.wait()


def _on_signals(handler: "signal._HANDLER") -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _stop_by_exception(number: int, frame: object) -> None:
    raise _Stopped


def _terminate(processes: list[Process]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()


def _watch(processes: list[Process], address: str) -> int:
    """Wait until one process ends; tell when both are ready."""
    started = time.monotonic()
    announced = False
    while True:
        for process in processes:
            if process.poll() is not None:
                return process.returncode or 1
        if not announced and _is_ready(address):
            announced = True
            _announce(address, time.monotonic() - started)
        time.sleep(_POLL_SECONDS)


def _setting(name: str, default: str) -> str:
    """A setting as the services read it: an empty variable is an unset one."""
    return os.environ.get(name) or default


def _http_address() -> str:
    """Where a client on this machine finds the bridge."""
    host, _, port = _setting("TAILRACE_HTTP_ADDRESS", "127.0.0.1:8787").rpartition(":")
    return f"{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"


def _is_ready(address: str) -> bool:
    try:
        with _OPENER.open(f"http://{address}/readyz", timeout=2.0) as response:
            return json.load(response) is not None
    except (OSError, ValueError):
        return False


def _first_model() -> str:
    from inference_server.serving.catalog import read_catalog
    from inference_server.settings import DEFAULT_CATALOG
    from tailrace_shared.config_errors import ConfigurationError

    try:
        return read_catalog(Path(_setting("TAILRACE_CATALOG", str(DEFAULT_CATALOG))))[0].name
    except ConfigurationError:  # the server has read it, so it was changed since
        return "<model>"


def _announce(address: str, seconds: float) -> None:
    token = "$TOKEN" if any(os.environ.get(f"TAILRACE_API_TOKENS{name}") for name in ("", "_FILE")) else "any-token"
    print(
        f"""
Tailrace is ready after {seconds:.1f} s. Try it:

curl -N -X POST \\
  "http://{address}/client/v4/accounts/local/ai/run/{_first_model()}" \\
  -H "Authorization: Bearer {token}" \\
  -H "Content-Type:application/json" \\
  -d '{{ "prompt": "where is new york?", "stream": true }}'

A playground is at http://{address}/
gRPC listens on {_setting("TAILRACE_GRPC_ADDRESS", "127.0.0.1:50051")}. Ctrl-C stops both.
""",
        flush=True,
    )
