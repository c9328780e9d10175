"""Batches over REST and over the binding, from their submission to their results."""

import asyncio
import re

import grpc
import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import MODEL, RUN_URL, new_york

QUEUE_URL = f"{RUN_URL}?queueRequest=true"
TWO = {"requests": [{"prompt": "a", "external_reference": "x"}, {"prompt": "b", "external_reference": "y"}]}
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
RESULT = {"response": "New York\n“é”", "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}


async def rest(bridge, body, url=QUEUE_URL):
    response = await bridge.ask(body, url=url)
    assert response.status_code == 200, response.text
    assert response.json()["success"] is True
    return response.json()["result"]


async def binding(bridge, inputs, **options):
    body = {"inputs": inputs, "options": options}
    response = await bridge.client.post("/run?version=3", json=body, headers={"cf-consn-model-id": MODEL})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


async def results(ask, bridge, request_id, **options):
    async with asyncio.timeout(5):
        while "status" in (answer := await ask(bridge, {"request_id": request_id}, **options)):
            assert answer["status"] in ("queued", "running")
            await asyncio.sleep(0.005)
    return answer


async def test_a_batch_over_rest_has_its_results_in_order(bridge, servicer):
    queued = await rest(bridge, TWO)
    assert (queued["status"], queued["model"]) == ("queued", MODEL) and UUID.fullmatch(queued["request_id"])
    answer = await results(rest, bridge, queued["request_id"])
    assert answer == {
        "responses": [
            {"id": 0, "result": RESULT, "success": True, "external_reference": "x"},
            {"id": 1, "result": RESULT, "success": True, "external_reference": "y"},
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 14, "total_tokens": 24},
    }
    assert [request.chat.turns[0].content for request in servicer.requests] == ["a", "b"]
    assert {request.priority for request in servicer.requests} == {pb.PRIORITY_BATCH}


async def test_a_batch_that_is_too_large_is_refused(start_bridge, servicer):
    bridge = await start_bridge(batches_max_bytes=1000)
    response = await bridge.ask({"requests": [{"prompt": "a" * 600}] * 2}, url=QUEUE_URL)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (413, 3006)
    assert not servicer.requests


async def test_a_batch_over_the_binding_has_its_results_in_order(bridge):
    queued = await binding(bridge, TWO, queueRequest=True)
    answer = await results(binding, bridge, queued["request_id"])
    assert [response["external_reference"] for response in answer["responses"]] == ["x", "y"]


@pytest.mark.parametrize(
    ("body", "url"),
    [
        (TWO, RUN_URL),
        ({**TWO, "queueRequest": True}, RUN_URL),
        ({**TWO, "options": {"queueRequest": True}}, RUN_URL),
        ({"prompt": "a"}, QUEUE_URL),
        ({"messages": [{"role": "user", "content": "a"}]}, QUEUE_URL),
        ({"model": MODEL, "input": TWO}, "/client/v4/accounts/acc/ai/run"),
        ({"model": MODEL, "input": TWO, "options": {"queueRequest": True}}, "/client/v4/accounts/acc/ai/run"),
    ],
)
async def test_every_way_to_submit_succeeds(bridge, body, url):
    queued = await rest(bridge, body, url=url)
    answer = await results(rest, bridge, queued["request_id"], url=RUN_URL)
    assert all(response["success"] for response in answer["responses"])


async def test_a_batch_runs_while_its_client_polls(bridge, servicer):
    gate = asyncio.Event()

    async def slowly(reply):
        await gate.wait()
        await new_york(reply)

    servicer.script = slowly
    queued = await rest(bridge, TWO)
    status = await rest(bridge, {"request_id": queued["request_id"]})
    assert status == {"status": "running", "request_id": queued["request_id"], "model": MODEL}
    gate.set()
    await results(rest, bridge, queued["request_id"])


async def test_invalid_requests_fail_alone(bridge, servicer):
    requests = [{"prompt": "a"}, {"prompt": "b", "top_k": 0, "external_reference": "y"}, "no object", {}]
    queued = await rest(bridge, {"requests": requests})
    first, second, third, fourth = (await results(rest, bridge, queued["request_id"]))["responses"]
    assert first["success"] and first["external_reference"] is None
    assert (second["success"], second["result"], second["external_reference"]) == (False, {}, "y")
    assert second["error"]["code"] == 5006 and "/top_k" in second["error"]["message"]
    assert "'/requests/2' is not an object" in third["error"]["message"] and fourth["error"]["code"] == 5006
    assert len(servicer.requests) == 1


async def test_a_request_of_a_batch_does_not_stream(bridge, servicer):
    queued = await rest(bridge, {"requests": [{"prompt": "a", "stream": True}]})
    assert (await results(rest, bridge, queued["request_id"]))["responses"][0]["result"] == RESULT


async def test_a_server_without_capacity_only_delays_a_batch(bridge, servicer, monkeypatch):
    monkeypatch.setattr("http_bridge.batches.queue.FIRST_PAUSE", 0.01)

    async def busy(reply):
        await reply.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAPACITY_EXCEEDED")

    servicer.scripts = [busy, busy, new_york]
    queued = await rest(bridge, {"requests": [{"prompt": "a"}]})
    assert (await results(rest, bridge, queued["request_id"]))["responses"][0]["success"]


async def test_a_failed_run_is_an_error_of_its_request(bridge, servicer):
    async def failing(reply):
        await reply.refuse(grpc.StatusCode.INTERNAL, "GENERATION_FAILED")

    servicer.script = failing
    queued = await rest(bridge, {"requests": [{"prompt": "a"}]})
    (response,) = (await results(rest, bridge, queued["request_id"]))["responses"]
    assert (response["success"], response["error"]["code"]) == (False, 3000)


async def test_another_accounts_batch_does_not_exist(start_bridge, bridge):
    queued = await rest(bridge, TWO)
    body = {"request_id": queued["request_id"]}
    others = [
        f"/client/v4/accounts/other/ai/run/{MODEL}",
        "/client/v4/accounts/acc/ai/run/@hf/other/second",
    ]
    for url in others:
        response = await bridge.ask(body, url=url)
        assert (response.status_code, response.json()["errors"][0]["code"]) == (404, 5006)
        assert queued["request_id"] in response.json()["errors"][0]["message"]


async def test_an_unknown_batch_is_an_error_that_the_binding_understands(bridge):
    body = {"inputs": {"request_id": "000-000-000"}, "options": {}}
    response = await bridge.client.post("/run?version=3", json=body, headers={"cf-consn-model-id": MODEL})
    assert (response.status_code, response.json()["internalCode"]) == (404, 5006)
    assert "there is no batch with the request_id '000-000-000'" in response.json()["description"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"requests": []}, 400, 5006),
        ({"requests": {}}, 400, 5006),
        ({"requests": "a"}, 400, 5006),
        ({"request_id": 5}, 400, 5006),
        ({"requests": [{"prompt": "a"}] * 4}, 413, 3006),
    ],
)
async def test_a_wrong_batch_is_refused_as_a_whole(start_bridge, servicer, body, status, code):
    bridge = await start_bridge(batches_max_requests=3)
    response = await bridge.ask(body, url=QUEUE_URL)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (status, code)
    assert not servicer.requests


async def test_a_batch_for_an_unknown_model_is_refused(bridge):
    response = await bridge.ask(TWO, url="/client/v4/accounts/acc/ai/run/@cf/x/y?queueRequest=true")
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5007)


async def test_a_full_queue_is_429(start_bridge, servicer):
    bridge = await start_bridge(batches_max=1)

    async def forever(reply):
        await reply.accept()
        await reply.forever()

    servicer.script = forever
    await rest(bridge, TWO)
    response = await bridge.ask(TWO, url=QUEUE_URL)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (429, 3040)
    assert response.headers["retry-after"] == "30"


async def test_a_stop_of_the_bridge_cancels_the_runs_of_batches(servicer, backend):
    from tests.http_bridge.conftest import running_bridge

    async def forever(reply):
        await reply.accept()
        await reply.forever()

    servicer.script = forever
    async with running_bridge(backend.address) as bridge:
        await rest(bridge, TWO)
        await servicer.entered.wait()
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


async def test_batches_are_counted(bridge):
    queued = await rest(bridge, TWO)
    await results(rest, bridge, queued["request_id"])
    registry = bridge.metrics.registry
    assert registry.get_sample_value("tailrace_batches", {"status": "finished"}) == 1
    assert registry.get_sample_value("tailrace_batch_requests_ended_total", {"result": "success"}) == 2
    assert registry.get_sample_value("tailrace_batch_requests", {"state": "waiting"}) == 0
