"""Runs the stack of docker-compose.yml under a name of its own, and Docker commands for the tests."""

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
MODELS += ["@cf/baai/bge-small-en-v1.5", "@cf/sentence-transformers/all-minilm-l6-v2"]
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
    """A stack with its own project, ports, containers, volumes and images, and without the developer's settings."""

    def __init__(self) -> None:
        self.http_address, self.grpc_address = free_address(), free_address()
        self.first_start_seconds = 0.0
        # Compose files that are read after docker-compose.yml.
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
        """Return the output of `docker compose …`. Raises AssertionError with its end and the services' logs if it fails."""
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
        """Start servers until `replicas` are healthy, without touching the running ones."""
        self.timed("up", "--wait", "--no-recreate", f"--scale={SERVER}={replicas}", seconds=START_SECONDS)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers, stopped ones too."""
        return self.compose("ps", "--all", "--quiet", service, seconds=60).split()

    def inspect(self, service: str, template: str) -> str:
        """Return the output of `docker inspect --format` for a service's only container."""
        (container,) = self.containers(service)
        return self.docker("inspect", f"--format={template}", container)

    def healthy_after_seconds(self, service: str) -> float:
        """Return the seconds from the start of a service's only container to its first passed health check."""
        state = json.loads(self.inspect(service, "{{json .State}}"))
        passed = next(check["Start"] for check in state["Health"]["Log"] if check["ExitCode"] == 0)
        return (datetime.fromisoformat(passed) - datetime.fromisoformat(state["StartedAt"])).total_seconds()

    def image_bytes(self, service: str) -> int:
        return int(self.docker("image", "inspect", "--format={{.Size}}", self.inspect(service, "{{.Image}}")))

    def run(self, service: str, *command: str) -> str:
        """Return the output of a command in the first container of a service."""
        return self.compose("exec", "-T", service, *command, seconds=60).strip()

    def python(self, service: str, code: str) -> str:
        return self.run(service, "python", "-c", code)

    def metric(self, container: str, name: str) -> float:
        """Return the sum of a server's samples of that name over all labels; 0 if there are none."""
        text = self.docker("exec", container, "python", "-c", _METRICS)
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def docker(self, *arguments: str, seconds: float = 60) -> str:
        """Return the output of `docker …`. Raises AssertionError if it fails."""
        done = self._docker(*arguments, seconds=seconds)
        assert done.returncode == 0, f"docker {' '.join(arguments)}:\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def log(self, container: str) -> str:
        """Return everything that a container has written: its output, then its errors and log lines."""
        done = self._docker("logs", container, seconds=60)
        return done.stdout + done.stderr

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
