"""The stack of docker-compose.yml under a name of its own, and Docker as the tests use it."""

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime

from tests.support.processes import ROOT, free_address

MODELS = ["@cf/meta/llama-2-7b-chat-int8", "@cf/meta/llama-2-7b-chat-fp16", "@cf/huggingfacetb/smollm2-135m-instruct"]
SERVER, BRIDGE = SERVICES = ["inference_server", "http_bridge"]
RUN_PATH = "/client/v4/accounts/local/ai/run/"
TOKEN = "local-token"
BUILD_SECONDS = 1800  # a build may fetch gigabytes
START_SECONDS = 600
REPLY_SECONDS = 300
_ASIDE = re.compile(r"TAILRACE_|COMPOSE_|HF_|OTEL_", re.IGNORECASE)
_METRICS = """
import http.client
connection = http.client.HTTPConnection("127.0.0.1", 9464, timeout=10)
connection.request("GET", "/metrics")
print(connection.getresponse().read().decode())
"""


class Stack:
    """Project, ports, containers, volumes and images of its own, and none of the developer's settings."""

    def __init__(self) -> None:
        self.http_address, self.grpc_address = free_address(), free_address()
        self.first_start_seconds = 0.0
        # Files beside docker-compose.yml that are read after it.
        self.overrides: Sequence[str] = ()
        self._project = f"tailrace-test-{secrets.token_hex(4)}"
        self._environment = {name: value for name, value in os.environ.items() if not _ASIDE.match(name)} | {
            "TAILRACE_HTTP_PORT": self.http_address.rpartition(":")[2],
            "TAILRACE_GRPC_PORT": self.grpc_address.rpartition(":")[2],
            "TAILRACE_MAX_RUNNING_SEQS": "4",
            # Two threads wait for each other in every layer; beside other work on the machine that takes forever.
            "OMP_NUM_THREADS": "1",
        }

    def compose(self, *arguments: str, seconds: float) -> str:
        """What `docker compose …` printed. Raises AssertionError, with its end and the services' logs, if it fails."""
        files = [f"--file={ROOT / name}" for name in ("docker-compose.yml", *self.overrides)]
        options = [f"--project-name={self._project}", *files, f"--env-file={os.devnull}"]
        done = self._docker("compose", *options, *arguments, seconds=seconds)
        if done.returncode:
            logs = self._docker("compose", *options, "logs", "--tail=30", seconds=60)
            raise AssertionError(f"docker compose {' '.join(arguments)}:\n{done.stderr[-4000:]}\n{logs.stdout[-4000:]}")
        return done.stdout

    def timed(self, *arguments: str, seconds: float) -> float:
        started = time.monotonic()
        self.compose(*arguments, seconds=seconds)
        took = time.monotonic() - started
        print(f"docker compose {' '.join(arguments)}: {took:.1f} s")
        return took

    def scale(self, replicas: int) -> None:
        """So many healthy servers; those that are there already are left alone."""
        self.timed("up", "--wait", "--no-recreate", f"--scale={SERVER}={replicas}", seconds=START_SECONDS)

    def containers(self, service: str) -> list[str]:
        """Their ids, stopped ones too."""
        return self.compose("ps", "--all", "--quiet", service, seconds=60).split()

    def inspect(self, service: str, template: str) -> str:
        """`docker inspect --format` of a service's one container."""
        (container,) = self.containers(service)
        return self.docker("inspect", f"--format={template}", container)

    def healthy_after_seconds(self, service: str) -> float:
        """From the start of a service's one container to the first check that it passed."""
        state = json.loads(self.inspect(service, "{{json .State}}"))
        passed = next(check["Start"] for check in state["Health"]["Log"] if check["ExitCode"] == 0)
        return (datetime.fromisoformat(passed) - datetime.fromisoformat(state["StartedAt"])).total_seconds()

    def image_bytes(self, service: str) -> int:
        return int(self.docker("image", "inspect", "--format={{.Size}}", self.inspect(service, "{{.Image}}")))

    def run(self, service: str, *command: str) -> str:
        """What a command prints in a service's container, or in the first of them."""
        return self.compose("exec", "-T", service, *command, seconds=60).strip()

    def python(self, service: str, code: str) -> str:
        return self.run(service, "python", "-c", code)

    def metric(self, container: str, name: str) -> float:
        """The sum of a server's samples of that name, whatever their labels. 0: there are none."""
        text = self.docker("exec", container, "python", "-c", _METRICS)
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def docker(self, *arguments: str, seconds: float = 60) -> str:
        """What `docker …` printed. Raises AssertionError if it fails."""
        done = self._docker(*arguments, seconds=seconds)
        assert done.returncode == 0, f"docker {' '.join(arguments)}:\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def _docker(self, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
