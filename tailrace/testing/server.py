"""Starts one server for a whole test run, whose tests may run in several processes.

The first process that needs the server starts it. The others wait for it. A keeper process (keeper.py) runs the server,
and stops it at the test run's request, or when the test run has ended for any reason.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailrace.errors import TailraceError
from tailrace_shared.platforms import WINDOWS_SENTENCE, is_windows

# The first start may download a model.
_START_SECONDS = 1800.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.1
_REPORT_SECONDS = 5.0
_ANSWER_SECONDS = 20.0
_TAIL_LINES = 20
# Files in the shared folder.
_STARTING, _READY, _FAILED, _KEEPER, _LOG = "starting", "ready.json", "failed", "keeper.pid", "server.log"

# The keepers that this process started, by their folders. Python warns if the object of a running process is destroyed,
# and pytest may turn a warning into an error.
_keepers: "dict[Path, subprocess.Popen[bytes]]" = {}


class StartError(Exception):
    """There is no server for the tests. The message states the cause, with the end of the log if the server ended."""


@dataclass(frozen=True, slots=True)
class TestServer:
    """A running server.

    Attributes:
        url: The bridge's URL, without a slash at its end.
        grpc_url: The inference server's address for tailrace.Client; empty for a server that was running already.
        log: The log of both services; None for a server that was running already.
    """

    __test__ = False  # pytest collects classes whose name begins with Test

    url: str
    grpc_url: str = ""
    log: Path | None = None

    @property
    def openai_url(self) -> str:
        """The base URL for OpenAI's clients. Any API key is valid, unless the server has tokens."""
        return f"{self.url}/v1"


def running(url: str) -> TestServer:
    """Return the server that is already running at `url`. Raises StartError if it does not answer."""
    from tailrace.client import Client

    try:
        with Client(url, timeout=_ANSWER_SECONDS) as client:
            client.models()
            return TestServer(client.url)
    except (TailraceError, ValueError) as error:
        raise StartError(f"TAILRACE_URL is set to {url}, and the server there does not answer: {error}") from None


def shared(
    folder: Path, *, owner: int, models: Sequence[str], settings: Mapping[str, str], report: Callable[[str], None]
) -> TestServer:
    """Return the server of this test run; start it if this process is the first one that needs it.

    Args:
        folder: The folder that the processes of the test run share.
        owner: Id of the test run's process. The server stops when this process ends.
        models: Models for `tailrace serve`; empty: its default.
        settings: TAILRACE_* variables of the server.
        report: Prints a line about the progress.

    Raises:
        StartError: The server did not start.
    """
    if is_windows():  # the keeper's signals do not exist there either
        raise StartError(f"{WINDOWS_SENTENCE} Start a server there, and set TAILRACE_URL to its address.")
    if not _claims(folder / _STARTING):
        return _started_by_another(folder)
    try:
        server = _start(folder, owner, models, settings, report)
    except StartError as error:
        _write(folder / _FAILED, str(error))
        raise
    _write(folder / _READY, json.dumps([server.url, server.grpc_url]))
    return server


def stop(folder: Path) -> None:
    """Stop the test run's server, if the run started one, and delete `folder`, which its processes share."""
    keeper = _number(folder / _KEEPER)
    if keeper and _is_alive(keeper):
        os.kill(keeper, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while _is_alive(keeper) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    if (started := _keepers.pop(folder, None)) is not None:
        started.poll()  # it has ended, and its object may be destroyed without a warning
    shutil.rmtree(folder, ignore_errors=True)


def _start(
    folder: Path, owner: int, models: Sequence[str], settings: Mapping[str, str], report: Callable[[str], None]
) -> TestServer:
    http_address, grpc_address = _free_addresses()
    log = folder / _LOG
    environment = {
        **os.environ,
        **settings,
        "TAILRACE_HTTP_ADDRESS": http_address,
        "TAILRACE_GRPC_ADDRESS": grpc_address,
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "tailrace.testing.keeper", str(owner), str(folder), *models]
    with log.open("wb") as output:
        # In a separate session: Ctrl-C reaches only pytest, which then stops the server.
        keeper = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _keepers[folder] = keeper
    _write(folder / _KEEPER, str(keeper.pid))
    report(f"tailrace: starting a server for the tests; its log is {log}")
    started = reported = time.monotonic()
    while not _is_ready(http_address):
        seconds = time.monotonic() - started
        if (code := keeper.poll()) is not None:
            raise StartError(f"The server for the tests ended with exit code {code}. The end of its log:\n{_tail(log)}")
        if seconds > _START_SECONDS:
            stop(folder)
            raise StartError(f"The server for the tests was not ready after {_START_SECONDS:.0f} s.")
        if time.monotonic() - reported >= _REPORT_SECONDS:
            reported = time.monotonic()
            report(f"tailrace: {seconds:.0f} s: {_tail(log, 1) or 'no output yet'}")
        time.sleep(_POLL_SECONDS)
    report(f"tailrace: ready after {time.monotonic() - started:.1f} s at http://{http_address}")
    return TestServer(f"http://{http_address}", f"grpc://{grpc_address}", log)


def _started_by_another(folder: Path) -> TestServer:
    """Wait until another process has started the server."""
    while True:
        if (folder / _READY).exists():
            url, grpc_url = json.loads((folder / _READY).read_text())
            return TestServer(url, grpc_url, folder / _LOG)
        if (folder / _FAILED).exists():
            raise StartError((folder / _FAILED).read_text())
        starter = _number(folder / _STARTING)
        if starter and not _is_alive(starter):
            raise StartError("The test process that was starting the server ended before the server was ready.")
        time.sleep(_POLL_SECONDS)


def _claims(path: Path) -> bool:
    """Return True in the first process that calls this with `path`. The file then contains the id of that process."""
    try:
        claim = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with open(claim, "w") as file:
        file.write(str(os.getpid()))
    return True


def _free_addresses() -> list[str]:
    """Return two free addresses of this machine."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    return addresses


def _is_ready(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=2.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_alive(process: int) -> bool:
    try:
        # A child that has ended exists until its parent has read its exit code.
        os.waitpid(process, os.WNOHANG)
    except (ChildProcessError, AttributeError):
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _number(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except (OSError, ValueError):
        return 0


def _write(path: Path, text: str) -> None:
    """Write a file atomically: other processes find all of its text or no file."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)


def _tail(log: Path, lines: int = _TAIL_LINES) -> str:
    return "\n".join(log.read_text(errors="replace").split("\n")[-lines - 1 :]).strip()
