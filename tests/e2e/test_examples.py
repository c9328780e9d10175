"""The examples with a running stack: their output, their exit codes, and that their runs end."""

import asyncio
import json
import re
import signal
import subprocess
import sys

import httpx
import pytest

from tests.e2e.stack import MODELS
from tests.support.processes import ROOT, free_address

STORY = "Write a long story about a river and the people who live beside it."


def run_stream(stack, *words, **settings):
    command = [sys.executable, "-m", "examples.stream", *words]
    environment = {**stack.environment, **settings}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)


@pytest.fixture
def web(stack):
    with httpx.Client(base_url=f"http://{stack.web_address}", timeout=30, trust_env=False) as client:
        yield client


def story_query(*, max_tokens):
    return {"prompt": STORY, "seed": "1", "max_tokens": str(max_tokens)}


async def test_curl_streams_and_then_prints_a_complete_reply(stack):
    process = await asyncio.create_subprocess_exec(
        ROOT / "examples" / "curl.sh", env=stack.environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output = (await process.stdout.read()).decode()
        assert await process.wait() == 0
    stream, reply = output.split("data: [DONE]\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in stream.split("\n\n")[:-1]]
    assert len(events) > 5
    assert "".join(event["response"] for event in events)
    assert events[-1]["usage"]["completion_tokens"] >= len(events) - 1
    assert json.loads(reply)["result"]["response"]


def test_curl_prints_an_error_and_fails(stack):
    environment = stack.environment | {"TAILRACE_HTTP_ADDRESS": free_address()}
    command = [ROOT / "examples" / "curl.sh"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout) == (7, "")
    assert result.stderr.startswith("curl: (7) ")


def test_stream_prints_the_reply_and_a_line_about_it(stack):
    result = run_stream(stack, "where", "is", "new", "york?")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(
        r".+\nFINISH_REASON_(STOP|LENGTH): \d+ prompt \+ \d+ completion tokens\n", result.stdout, re.DOTALL
    )


def test_stream_prints_a_refusal_in_one_sentence(stack):
    result = run_stream(stack, "hello", MODEL="@cf/none/such")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(
        r"127\.0\.0\.1:\d+: NOT_FOUND UNKNOWN_MODEL: there is no model '@cf/none/such' here; .+\n", result.stderr
    )


def test_stream_reports_an_unreachable_server(stack):
    address = free_address()
    result = run_stream(stack, "hello", TAILRACE_GRPC_ADDRESS=address)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{address}: UNAVAILABLE") and result.stderr.count("\n") == 1


async def test_stream_cancels_its_run_on_ctrl_c(stack):
    num_runs = len(stack.settled_runs())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.stream", STORY),
        cwd=ROOT,
        env=stack.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        assert await process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert await process.stderr.read() == b""
    runs = stack.wait_for_runs(num_runs + 1, timeout_seconds=10)[num_runs:]
    assert [run.outcome for run in runs] == ["cancelled"]


@pytest.mark.parametrize(
    ("question", "note"),
    [
        ("When is breakfast?", "Breakfast at"),
        ("May I bring my poodle?", "Dogs"),
        ("Where can I find a boat?", "The key of"),
    ],
)
def test_rag_answers_from_the_nearest_note(stack, question, note):
    command = [sys.executable, "-m", "examples.rag", question]
    result = subprocess.run(command, cwd=ROOT, env=stack.environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    first, second, *answer = result.stdout.splitlines()
    assert re.fullmatch(rf"0\.\d\d  {note} .*", first) and float(first[:4]) > float(second[:4])
    assert "".join(answer).strip()


def test_rag_reports_a_refusal_in_one_sentence(stack):
    command = [sys.executable, "-m", "examples.rag"]
    environment = {**stack.environment, "EMBEDDER": "@cf/none/such"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    assert "No such model @cf/none/such" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_web_app_forwards_the_stream_unbuffered(stack, web, method):
    num_runs = len(stack.settled_runs())
    body = {"prompt": STORY, "seed": 1, "max_tokens": 120}
    fields = {"params": story_query(max_tokens=120)} if method == "GET" else {"json": body}
    with web.stream(method, "/worker-endpoint", **fields) as response:
        chunks = response.iter_raw()
        stream = next(chunks)
        assert len(stack.runs()) == num_runs, "the first event came only when the whole reply was there"
        stream += b"".join(chunks)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert stream.startswith(b'data: {"response":"')
    assert stream.endswith(b"data: [DONE]\n\n")
    url = f"http://{stack.http_address}/client/v4/accounts/local/ai/run/{MODELS[0]}"
    assert stream == web.post(url, json={**body, "stream": True}).content


def test_web_app_cancels_the_run_when_the_client_disconnects(stack, web):
    num_runs = len(stack.settled_runs())
    with web.stream("GET", "/worker-endpoint", params=story_query(max_tokens=1000)) as response:
        next(response.iter_raw())
    runs = stack.wait_for_runs(num_runs + 1, timeout_seconds=10)[num_runs:]
    assert [run.outcome for run in runs] == ["cancelled"]


def test_web_app_keeps_status_and_body_of_a_refusal(web):
    response = web.get("/worker-endpoint", params={"prompt": "hello", "max_tokens": "many"})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert response.json()["errors"][0]["code"] == 5006


def test_web_app_reports_an_unreachable_bridge(stack):
    bridge = free_address()
    web = stack.start_web_app(TAILRACE_HTTP_ADDRESS=bridge)
    response = httpx.get(f"http://{web}/worker-endpoint", params={"prompt": "hello"}, trust_env=False)
    assert response.status_code == 502
    assert response.json()["errors"] == [{"message": f"The bridge at {bridge} does not answer."}]


def test_web_app_refuses_a_body_that_is_not_an_object(web):
    response = web.post("/worker-endpoint", content=b"[]")
    assert response.status_code == 400
    assert response.json()["errors"] == [{"message": "The body must be a JSON object."}]
