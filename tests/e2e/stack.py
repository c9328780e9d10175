"""The whole of Tailrace as a user starts it: server, bridge and example web app, a process each, on the default model.

Only the catalog is not the default one: the same names and weights, but 16-bit for all, so that one engine is loaded
within seconds, and short replies. A conftest that imports `stack` has it as a fixture; it is started once a test run.
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
# Enough to cancel a reply in the middle, and not much to wait for where nothing can ask for less.
SEQUENCE_LENGTH = 64
_DEFAULT_CATALOG = ROOT / "inference_server" / "catalogs" / "default.toml"
# The inference server may be another: a command, started with the same settings (make test-vllm).
OTHER_SERVER = shlex.split(os.environ.get("TAILRACE_TEST_SERVER", ""))
# Converting the default model for the first time takes half a minute, loading it seconds. vLLM takes a minute for that.
_START_SECONDS = 600 if OTHER_SERVER else 110
_STOP_SECONDS = 20 if OTHER_SERVER else 10
_RUN_LOGGED = re.compile(r"server: run (?P<id>\S+) (?P<model>.+): (?P<outcome>\S+) after [\d.]+ s", re.MULTILINE)
_SETTING = re.compile(r"TAILRACE_|(https?|all|no)_proxy$|MODEL$|WEB_ADDRESS$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Run:
    """A run that ended, as the inference server's log tells it."""

    request_id: str
    model: str
    outcome: str  # completed, cancelled, or the reason of an error


class Stack:
    """Addresses are host:port. Every process logs to a file of its own in `folder`."""

    def __init__(self, folder: Path, catalog: str = "", *, server: Sequence[str] = ()) -> None:
        """catalog: its text; empty: the default catalog with short replies. server: another command than ours."""
        self._server = list(server)
        self._folder = folder
        self._catalog = folder / "catalog.toml"
        self._catalog.write_text(catalog or _short_catalog(_DEFAULT_CATALOG.read_text()))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.grpc_address, self.http_address, self.web_address = (free_address() for _ in range(3))

    @property
    def environment(self) -> dict[str, str]:
        """Leads any of the project's programs to this stack; nothing of the developer's own settings is in it."""
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
        """Another web app with settings of its own; returns its address."""
        address = free_address()
        self.spawn("examples.web.app", name=f"web app {address}", WEB_ADDRESS=address, **settings)
        self.wait_until_answered(f"http://{address}/")
        return address

    def spawn(self, module: str, *, name: str = "", **settings: str) -> None:
        name = name or module
        command = [sys.executable, "-m", module]
        if self._server and module == "inference_server":
            command = self._server
        # One that is started again goes on in the log of the one before.
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=self.environment | settings, stdout=log, stderr=log
            )

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """The newest of that name."""
        return self._processes[name]

    def log(self, name: str) -> str:
        """What the process, and those before it of the same name, have written so far."""
        return self._log(name).read_text(errors="replace")

    def runs(self) -> list[Run]:
        """Every run that ended so far, in that order."""
        text = self.log("inference_server")
        return [Run(found["id"], found["model"], found["outcome"]) for found in _RUN_LOGGED.finditer(text)]

    def wait_for_runs(self, number: int, *, timeout_seconds: float) -> list[Run]:
        """Wait until `number` runs have ended since the start of the stack, or the time is over; returns all of them."""
        deadline = time.monotonic() + timeout_seconds
        while len(self.runs()) < number and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.runs()

    def wait_until_answered(self, url: str) -> None:
        """Wait until the URL is answered with 200. Raises RuntimeError with the logs if a process ends or time is over."""
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


def _short_catalog(text: str) -> str:
    text = re.sub(r'^precision = ".*"', 'precision = "float16"', text, flags=re.MULTILINE)
    return re.sub(r"^sequence_length = .*", f"sequence_length = {SEQUENCE_LENGTH}", text, flags=re.MULTILINE)


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
