"""Tailrace as a user starts it: server, bridge and example web app, a process each, on the default model.

Only the catalog differs from the default: the same names and weights, but 16-bit for all and short replies, so that a
single engine loads within seconds. A conftest that imports `stack` has it as a fixture, started once per test run.
"""

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import ROOT, free_address

MODELS = (
    "@cf/meta/llama-2-7b-chat-int8",
    "@cf/meta/llama-2-7b-chat-fp16",
    "@cf/huggingfacetb/smollm2-135m-instruct",
)
EMBEDDERS = ("@cf/baai/bge-small-en-v1.5", "@cf/sentence-transformers/all-minilm-l6-v2")
# Long enough to cancel a reply in the middle, and short enough to wait for.
SEQUENCE_LENGTH = 128
_DEFAULT_CATALOG = ROOT / "inference_server" / "catalogs" / "default.toml"
# Another inference server: a command that is started with the same settings (make test-vllm).
OTHER_SERVER = shlex.split(os.environ.get("TAILRACE_TEST_SERVER", ""))
# Converting the default model for the first time takes half a minute, loading it seconds. vLLM takes a minute for that.
_START_SECONDS = 600 if OTHER_SERVER else 110
_STOP_SECONDS = 20 if OTHER_SERVER else 10
_RUN_ADMITTED = re.compile(r"server: admitted (?P<id>\S+) account ")
_RUN_LOGGED = re.compile(r"server: run (?P<id>\S+) (?P<model>.+): (?P<outcome>\S+) after [\d.]+ s", re.MULTILINE)
_SETTING = re.compile(r"TAILRACE_|(https?|all|no)_proxy$|MODEL$|WEB_ADDRESS$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Run:
    """A completed run, read from the inference server's log."""

    request_id: str
    model: str
    outcome: str  # completed, cancelled, or the reason of an error


class Stack:
    """The running processes. Addresses are host:port. Each process logs to a file of its own in `folder`."""

    def __init__(self, folder: Path, catalog: str = "", *, server: Sequence[str] = ()) -> None:
        """Create a stack. `catalog` is its text, by default the default catalog with short replies. `server` is a command."""
        self._server = list(server)
        self._folder = folder
        self._catalog = folder / "catalog.toml"
        self._catalog.write_text(catalog or short_catalog(SEQUENCE_LENGTH))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.grpc_address, self.http_address, self.web_address = (free_address() for _ in range(3))

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a client of this stack, without the developer's own settings."""
        kept = {name: value for name, value in os.environ.items() if not _SETTING.match(name)}
        return {
            **kept,
            # Two threads wait for each other in every layer; beside other work on the machine that takes forever.
            "OMP_NUM_THREADS": "1",
            "TAILRACE_GRPC_ADDRESS": self.grpc_address,
            "TAILRACE_HTTP_ADDRESS": self.http_address,
            "TAILRACE_CATALOG": str(self._catalog),
            "TAILRACE_MAX_RUNNING_SEQS": "8",
            "WEB_ADDRESS": self.web_address,
        }

    def start(self) -> None:
        for module in ("inference_server", "http_bridge", "examples.web.app"):
            self.spawn(module)
        self.wait_until_answered(f"http://{self.http_address}/readyz")
        self.wait_until_answered(f"http://{self.web_address}/")

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_web_app(self, **settings: str) -> str:
        """Start another web app with these settings. Returns its address."""
        address = free_address()
        self.spawn("examples.web.app", name=f"web app {address}", WEB_ADDRESS=address, **settings)
        self.wait_until_answered(f"http://{address}/")
        return address

    def spawn(self, module: str, *, name: str = "", **settings: str) -> None:
        name = name or module
        command = [sys.executable, "-m", module]
        if self._server and module == "inference_server":
            command = self._server
        # A restarted process appends to the log of the one before.
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=self.environment | settings, stdout=log, stderr=log
            )

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return the newest process of that name."""
        return self._processes[name]

    def log(self, name: str) -> str:
        """Return the output so far of the process and of earlier ones of the same name."""
        return self._log(name).read_text(errors="replace")

    def runs(self) -> list[Run]:
        """Return the runs that have ended, in that order."""
        text = self.log("inference_server")
        return [Run(found["id"], found["model"], found["outcome"]) for found in _RUN_LOGGED.finditer(text)]

    def wait_for_runs(self, number: int, *, timeout_seconds: float) -> list[Run]:
        """Wait until `number` runs have ended since the start of the stack, or a timeout. Returns all of them."""
        deadline = time.monotonic() + timeout_seconds
        while len(self.runs()) < number and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.runs()

    def settled_runs(self, *, timeout_seconds: float = 20.0) -> list[Run]:
        """Wait until every run that got a slot has ended, those of earlier tests too. Returns the runs that have ended.

        Raises AssertionError after the timeout.
        """
        deadline = time.monotonic() + timeout_seconds
        while running := self._admitted() - {run.request_id for run in self.runs()}:
            assert time.monotonic() < deadline, f"still running: {running}"
            time.sleep(0.02)
        return self.runs()

    def _admitted(self) -> set[str]:
        """Return the ids of the runs that got a slot."""
        return set(_RUN_ADMITTED.findall(self.log("inference_server")))

    def wait_until_answered(self, url: str) -> None:
        """Wait until the URL answers 200. Raises RuntimeError with the logs if a process ends or after a timeout."""
        deadline = time.monotonic() + _START_SECONDS
        while not _is_answered(url):
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{self.log(name)[-2000:]}" for name in self._processes)
                problem = f"{', '.join(ended)} ended by itself" if ended else f"{url} is not answered in time"
                raise RuntimeError(f"{problem}\n{logs}")
            time.sleep(0.1)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name.replace(':', '-')}.log"


def short_catalog(sequence_length: int) -> str:
    """Return the default catalog with 16-bit weights and replies of at most `sequence_length` tokens."""
    text = re.sub(r'^precision = ".*"', 'precision = "float16"', _DEFAULT_CATALOG.read_text(), flags=re.MULTILINE)
    return re.sub(r"^sequence_length = .*", f"sequence_length = {sequence_length}", text, flags=re.MULTILINE)


def _is_answered(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
