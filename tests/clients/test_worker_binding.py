"""The whole AI binding of a real Workers runtime against a bridge with a scripted server: batches, gateways, errors, abort."""

import asyncio

import httpx
import pytest

from tests.clients.node_programs import install, serving
from tests.http_bridge.conftest import Backend, new_york, running_bridge
from tests.support.processes import ROOT, free_address

pytestmark = pytest.mark.clients

WORKER = ROOT / "tests" / "clients" / "workers" / "binding.js"
RUNTIMES = {
    "workerd": ["node", "run-workerd.mjs", str(WORKER)],
    "miniflare-4": ["node", "run-miniflare.mjs", str(WORKER)],
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return install(ROOT / "examples" / "worker", tmp_path_factory.mktemp("workers") / "worker")


@pytest.fixture(params=RUNTIMES)
async def worker(request, examples):
    """Return a function that lets the Worker do one thing, with the scripted server as an attribute."""
    backend = Backend()
    await backend.server.start()
    async with running_bridge(backend.address) as bridge:
        address = free_address()
        settings = {"LISTEN": address, "BRIDGE": f"http://127.0.0.1:{bridge.port}"}
        with serving(RUNTIMES[request.param], examples, address, **settings) as url:
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:

                async def act(action):
                    response = await client.get(action)
                    assert response.status_code == 200, response.text
                    return response.json()

                act.servicer = backend.servicer
                yield act
    await backend.server.stop(None)


async def result(worker, action):
    answer = await worker(action)
    assert "error" not in answer, answer
    return answer["result"]


async def error(worker, action):
    answer = await worker(action)
    assert "error" in answer, answer
    return answer["error"]


async def test_a_worker_submits_and_polls_a_batch(worker):
    done = await result(worker, "batch")
    assert (done["queued"]["status"], len(done["queued"]["request_id"])) == ("queued", 36)
    responses = done["answer"]["responses"]
    assert [(item["id"], item["success"], item["external_reference"]) for item in responses] == [
        (0, True, "x"),
        (1, True, "y"),
    ]
    assert responses[0]["result"]["response"] == "New York\n“é”"
    unknown = await error(worker, "unknown-batch")
    assert (unknown["name"], unknown["code"]) == ("AiError", 5006) and unknown["message"].startswith("5006: ")


async def test_a_worker_runs_steps_of_a_gateway(worker):
    run = await result(worker, "gateway-run")
    assert (run["status"], run["step"]) == (200, "1")
    assert run["body"]["result"]["response"] == "New York\n“é”"
    stream = await result(worker, "gateway-stream")
    assert stream["type"] == "text/event-stream" and stream["text"].endswith("data: [DONE]\n\n")
    assert (await result(worker, "gateway-chat"))["object"] == "chat.completion"
    assert (await result(worker, "gateway-option"))["response"] == "New York\n“é”"
    other = await result(worker, "gateway-other")
    assert other["status"] == 400 and "'openai' is not served here" in other["body"]["error"][0]["message"]


async def test_a_worker_gets_the_address_of_a_gateway(worker):
    for action in ("gateway-url", "gateway-universal-url"):
        url = await result(worker, action)
        assert url.startswith("http://127.0.0.1:")
    body = {"prompt": "hi"}
    url = await result(worker, "gateway-url")
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(f"{url}/@cf/meta/llama-2-7b-chat-int8", json=body)
    assert response.json()["result"]["response"] == "New York\n“é”"
    wrong = await error(worker, "gateway-other-url")
    assert wrong["name"] == "AiGatewayInternalError" and "'openai' is not served here" in wrong["message"]


@pytest.mark.parametrize(
    ("action", "name", "words"),
    [
        ("gateway-log", "AiGatewayLogNotFound", "keeps no logs"),
        ("gateway-patch-log", "AiGatewayLogNotFound", "keeps no logs"),
        ("markdown", "AiInternalError", "toMarkdown is not served here"),
        ("autorag", "AutoRAGNotFoundError", "AutoRAG"),
        ("autorag-list", "AutoRAGInternalError", "AutoRAG"),
        ("strict", "AiError", "5028: This model was deprecated on 2026-05-30"),
    ],
)
async def test_what_is_not_there_is_an_error_of_the_runtimes_own_class(worker, action, name, words):
    wrong = await error(worker, action)
    assert wrong["name"] == name and words in wrong["message"]


async def test_a_worker_lists_models(worker):
    (model,) = await result(worker, "models")
    assert model["task"]["name"] == "Text Generation"
    assert [entry["id"] for entry in await result(worker, "openrouter")][0].startswith("@cf/")
    assert await result(worker, "markdown-formats") == []


async def test_a_worker_may_set_every_option(worker):
    raw = await result(worker, "raw")
    assert (raw["status"], len(raw["id"]), raw["body"]["response"]) == (200, 36, "New York\n“é”")
    socket = await result(worker, "websocket")
    assert (socket["status"], socket["socket"], socket["body"]["internalCode"]) == (400, False, 5006)


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_an_aborted_run_frees_its_slot(worker, stream):
    async def forever(reply):
        await reply.accept()
        await reply.start()
        await reply.say("New")
        await reply.forever()

    worker.servicer.scripts = [forever]
    aborted = await result(worker, f"abort?stream={stream}")
    assert "aborted" in aborted, aborted
    async with asyncio.timeout(10):
        await worker.servicer.cancelled.wait()
    worker.servicer.script = new_york
    assert (await result(worker, "raw"))["status"] == 200
