"""A Worker's env.AI.gateway(id), toMarkdown, autorag and models, in the runtime's own requests."""

import asyncio
import gzip
import json
import logging

import grpc
import pytest

from tests.http_bridge.conftest import MODEL, new_york

UNIVERSAL = "/ai-gateway/universal/run/g"
STEP = {"provider": "workers-ai", "endpoint": MODEL, "headers": {}, "query": {"prompt": "hi"}}
OTHER = {"provider": "openai", "endpoint": "chat/completions", "headers": {}, "query": {"messages": []}}
MESSAGES = [{"role": "user", "content": "hi"}]


async def universal(bridge, *steps, url=UNIVERSAL, **options):
    return await bridge.client.post(url, json=list(steps), **options)


@pytest.mark.parametrize("endpoint", [MODEL, f"/{MODEL}", f"run/{MODEL}", MODEL.replace("/", "%2F")])
async def test_a_step_of_workers_ai_is_served(bridge, servicer, endpoint):
    response = await universal(bridge, {**STEP, "endpoint": endpoint})
    assert response.json()["result"]["response"] == "New York\n“é”"
    assert response.headers["cf-aig-step"] == "0" and servicer.requests[0].model == MODEL


async def test_a_step_streams(bridge):
    response = await universal(bridge, {**STEP, "query": {"prompt": "hi", "stream": True}})
    assert response.headers["content-type"] == "text/event-stream"
    assert response.text.endswith("data: [DONE]\n\n")


async def test_a_step_may_name_openais_route(bridge):
    step = {**STEP, "endpoint": "v1/chat/completions", "query": {"model": MODEL, "messages": MESSAGES}}
    assert (await universal(bridge, step)).json()["choices"][0]["message"]["content"] == "New York\n“é”"


async def test_a_single_step_needs_no_list(bridge):
    assert (await bridge.client.post(UNIVERSAL, json=STEP)).status_code == 200


async def test_steps_may_be_compressed(bridge):
    response = await bridge.client.post(UNIVERSAL, content=gzip.compress(json.dumps([STEP]).encode()))
    assert response.status_code == 200


async def test_headers_of_a_step_replace_those_of_the_request(bridge, servicer):
    sessions = []

    async def noting(reply):
        sessions.append(dict(reply.context.invocation_metadata()).get("x-session-affinity"))
        await new_york(reply)

    servicer.script = noting
    step = {**STEP, "headers": {"X-Session-Affinity": "own", "Authorization": "Bearer x", "cf-aig-cache-ttl": 5}}
    await universal(bridge, step, headers={"x-session-affinity": "outer"})
    await universal(bridge, STEP, headers={"x-session-affinity": "outer"})
    assert sessions == ["own", "outer"]


async def test_the_next_step_answers_for_a_failed_one(bridge, servicer):
    async def busy(reply):
        await reply.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAPACITY_EXCEEDED")

    servicer.scripts = [busy, new_york]
    response = await universal(bridge, STEP, OTHER, STEP)
    assert (response.status_code, response.headers["cf-aig-step"]) == (200, "2")


async def test_a_step_at_a_route_that_is_not_served_has_failed_too(bridge):
    response = await universal(bridge, {**STEP, "endpoint": "v1/messages"}, STEP)
    assert (response.status_code, response.headers["cf-aig-step"]) == (200, "1")
    assert (await universal(bridge, STEP, {**STEP, "endpoint": "v1/messages"})).headers["cf-aig-step"] == "0"
    assert (await universal(bridge, {**STEP, "endpoint": "v1/messages"})).json()["errors"][0]["code"] == 7000


async def test_the_log_of_a_run_has_no_error_of_an_earlier_step(bridge, caplog):
    caplog.set_level(logging.INFO)
    await universal(bridge, {**STEP, "query": {"prompt": ""}}, STEP)
    async with asyncio.timeout(5):
        while not (found := [record.args for record in caplog.records if "%(route)s" in record.msg]):
            await asyncio.sleep(0.005)
    (fields,) = found
    assert (fields["status"], fields["error_code"]) == (200, None)


async def test_many_steps_are_read_on_another_thread(bridge, servicer):
    response = await universal(bridge, {**STEP, "query": {"prompt": "x" * 200_000}})
    assert response.status_code == 200 and len(servicer.requests[0].chat.turns[0].content) == 200_000


async def test_the_last_steps_error_is_the_answer(bridge, servicer):
    async def busy(reply):
        await reply.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAPACITY_EXCEEDED")

    servicer.script = busy
    response = await universal(bridge, STEP, STEP, OTHER)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (429, 3040)
    assert len(servicer.requests) == 2


async def test_other_providers_are_one_clear_error(bridge):
    response = await universal(bridge, OTHER)
    body = response.json()
    assert (response.status_code, body["name"], body["internalCode"]) == (400, "AiGatewayError", 2008)
    assert body["error"][0]["message"].startswith("The provider 'openai' is not served here")


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"",
        b"5",
        b"[5]",
        b'[{"provider": "workers-ai"}]',
        b'[{"provider": 1, "endpoint": "", "query": {}}]',
        b"{]",
    ],
)
async def test_wrong_steps_are_refused(bridge, servicer, body):
    response = await bridge.client.post(UNIVERSAL, content=body)
    assert response.status_code == 400 and response.json()["errors"][0]["code"] in (3003, 5006)
    assert not servicer.requests


async def test_an_unknown_endpoint_is_refused(bridge):
    response = await universal(bridge, {**STEP, "endpoint": "v1/nowhere"})
    assert (response.status_code, response.json()["internalCode"]) == (400, 2008)


async def test_a_large_body_is_refused(start_bridge):
    bridge = await start_bridge(max_body_bytes=1000)
    response = await universal(bridge, {**STEP, "query": {"prompt": "x" * 2000}})
    assert (response.status_code, response.json()["errors"][0]["code"]) == (413, 3006)


async def test_a_client_that_leaves_cancels_its_step(bridge, servicer):
    async def forever(reply):
        await reply.accept()
        await reply.forever()

    servicer.script = forever
    data = json.dumps([STEP]).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    head = f"POST {UNIVERSAL} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await servicer.entered.wait()
    writer.close()
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


@pytest.mark.parametrize("provider", ["workers-ai", "universal"])
async def test_the_address_of_a_gateway_serves_its_provider(bridge, provider):
    response = await bridge.client.get(f"/ai-gateway/gateways/g/url/{provider}")
    url = response.json()["result"]["url"]
    assert url.startswith(f"http://127.0.0.1:{bridge.port}/")
    if provider == "universal":
        assert (await universal(bridge, STEP, url=url)).status_code == 200
    else:
        assert (await bridge.client.post(f"{url}/{MODEL}", json={"prompt": "hi"})).json()["success"]
        chat = {"model": MODEL, "messages": MESSAGES}
        assert (await bridge.client.post(f"{url}/v1/chat/completions", json=chat)).json()["choices"]
        assert (await bridge.client.post(f"{url}/v1/nowhere", json=chat)).status_code == 400


async def test_the_address_of_another_provider_is_an_error(bridge):
    response = await bridge.client.get("/ai-gateway/gateways/g/url/openai")
    assert response.status_code == 400 and "'openai' is not served here" in response.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("method", "url", "status", "words"),
    [
        ("GET", "/ai-gateway/gateways/g/logs/id", 404, "keeps no logs"),
        ("PATCH", "/ai-gateway/gateways/g/logs/id", 404, "keeps no logs"),
        ("POST", "/to-everything/markdown/transformer", 400, "toMarkdown is not served here"),
        ("GET", "/autorag/rags", 404, "AutoRAG"),
        ("POST", "/autorag/rags/name/search", 404, "AutoRAG"),
        ("POST", "/autorag/rags/name/ai-search", 404, "AutoRAG"),
    ],
)
async def test_what_is_not_there_is_one_clear_error(bridge, method, url, status, words):
    response = await bridge.client.request(method, url)
    assert response.status_code == status
    assert words in response.json()["errors"][0]["message"]


async def test_no_file_can_become_markdown(bridge):
    assert (await bridge.client.get("/to-everything/markdown/supported")).json()["result"] == []


async def test_a_websocket_is_one_clear_error(bridge):
    headers = {"upgrade": "websocket", "connection": "upgrade"}
    response = await bridge.client.get("/run?version=3&body={}", headers=headers)
    assert (response.status_code, response.json()["internalCode"]) == (400, 5006)
    assert "websocket" in response.json()["description"]
    assert (await bridge.client.get("/run?version=3")).status_code == 405


async def test_every_route_is_on_the_listener_of_the_binding(start_bridge):
    bridge = await start_bridge(binding_address="127.0.0.1:0", api_tokens=("secret",))
    base = f"http://127.0.0.1:{bridge.binding_port}"
    headers = {"host": "workers-binding.ai"}
    assert (await universal(bridge, STEP, url=f"{base}{UNIVERSAL}", headers=headers)).status_code == 200
    url = (await bridge.client.get(f"{base}/ai-gateway/gateways/g/url/workers-ai", headers=headers)).json()["result"][
        "url"
    ]
    assert url.startswith(base)
    assert (await bridge.client.post(f"{url}/{MODEL}", json={"prompt": "hi"})).status_code == 200
    for path in ("/ai-gateway/gateways/g/logs/id", "/autorag/rags"):
        assert (await bridge.client.get(base + path, headers=headers)).json()["errors"]


async def test_a_gateways_runs_need_a_token_where_the_rest_interface_does(start_bridge, servicer):
    bridge = await start_bridge(api_tokens=("secret",))
    urls = [UNIVERSAL, "/ai-gateway/v1/acc/g", f"/ai-gateway/v1/acc/g/workers-ai/{MODEL}"]
    assert [(await universal(bridge, STEP, url=url)).status_code for url in urls] == [400] * 3
    wrapped = await bridge.client.get("/", headers={"mf-url": "https://workers-binding.ai/ai-api/models/search"})
    assert (wrapped.status_code, wrapped.json()["errors"][0]["code"]) == (400, 9106)
    assert not servicer.requests
    headers = {"authorization": "Bearer secret"}
    assert [(await universal(bridge, STEP, url=url, headers=headers)).status_code for url in urls[:2]] == [200] * 2


async def test_miniflare_and_wrangler_reach_the_gateway(bridge):
    wrapped = {"mf-url": f"https://workers-binding.ai{UNIVERSAL}", "mf-header-content-type": "application/json"}
    assert (await universal(bridge, STEP, url="/", headers=wrapped)).status_code == 200
    for path, words in (("/ai-api/models/search", MODEL), ("/autorag/rags", "AutoRAG")):
        response = await bridge.client.get("/", headers={"mf-url": f"https://workers-binding.ai{path}"})
        assert words in response.text
    assert "<!doctype html>" in (await bridge.client.get("/")).text.lower()
    headers = {"x-forwarded": f"https://workers-binding.ai{UNIVERSAL}"}
    url = "/client/v4/accounts/acc/ai/run/proxy"
    assert (await universal(bridge, STEP, url=url, headers=headers)).status_code == 200


async def test_an_error_of_the_models_list_is_readable_for_the_runtime(start_bridge):
    bridge = await start_bridge(grpc_address="127.0.0.1:1")
    response = await bridge.client.get("/ai-api/models/search")
    assert response.status_code == 503 and response.json()["errors"][0]["message"] == "Upstream service unavailable"
