"""Requests and replies that break real clients, on every route that runs a model.

Traps of a single route are tested with that route.
"""

import gzip
import json

import httpx

from tests.http_bridge.api.test_contract_errors import CLOUDFLARES, MODEL, OPENAIS, ROUTES, ask


def events(response: httpx.Response) -> list[dict]:
    *documents, done = response.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(document.removeprefix("data: ")) for document in documents]


async def test_content_types_have_no_parameters(bridge):
    for route in ROUTES:
        for stream, kind in ((False, "application/json"), (True, "text/event-stream")):
            response = await ask(bridge, route, {"stream": stream})
            assert (route, response.headers["content-type"]) == (route, kind)


async def test_fields_of_langchain_are_accepted(bridge, servicer):
    for route in ROUTES:
        response = await ask(bridge, route, {"stop": None, "temperature": 1e-08, "model": MODEL, "tool_choice": None})
        assert (route, response.status_code) == (route, 200)
    assert {request.sampling.temperature < 1e-7 for request in servicer.requests} == {True}


async def test_unknown_fields_and_query_keys_are_ignored(bridge):
    for route, way in ROUTES.items():
        body = way.wrap({**way.fields, "user": "u", "x_field": {"a": False}})
        url = f"{way.url}{'&' if '?' in way.url else '?'}max_tokens=5&x=y"
        response = await bridge.client.post(url, json=body, headers=way.headers)
        assert (route, response.status_code) == (route, 200)


async def test_a_stream_has_one_usage_and_it_is_the_sum(bridge):
    # Some clients sum the counters of all events, others take the last. Both are right only if there is one.
    for route in ROUTES:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        usages = [event["usage"] for event in events(await ask(bridge, route, options)) if event.get("usage")]
        assert (route, [usage["total_tokens"] for usage in usages]) == (route, [12])


async def test_openais_streams_contain_only_chunks(bridge):
    # The SDK turns an event without choices into a chunk with choices None, which crashes the user's loop.
    for route in OPENAIS:
        for event in events(await ask(bridge, route, {"stream": True})):
            assert isinstance(event["choices"], list)


async def test_a_token_that_is_json_stays_a_string(bridge, servicer):
    async def numbers(reply):
        await reply.accept()
        await reply.start()
        for text in ("6", "null", "true", "{}"):
            await reply.say(text)
        await reply.complete()

    servicer.script = numbers
    for route in CLOUDFLARES:
        texts = [event["response"] for event in events(await ask(bridge, route, {"stream": True}))]
        assert (route, texts) == (route, ["6", "null", "true", "{}", ""])
        assert (route, response_of(await ask(bridge, route))) == (route, "6nulltrue{}")


async def test_a_failure_within_a_stream_is_sent_without_an_end(bridge, servicer):
    async def fail(reply):
        await reply.accept()
        await reply.say("New")
        raise ValueError("secret detail")

    servicer.script = fail
    for route in ROUTES:
        text = (await ask(bridge, route, {"stream": True})).text
        last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert (route, "[DONE]" in text, "secret" in text) == (route, False, False)
        assert "error" in last if route in OPENAIS else last["success"] is False


async def test_the_bindings_host_is_accepted(bridge):
    for host in ("workers-binding.ai", "ai.cloudflare.com"):
        assert (await ask(bridge, "binding", host=host)).status_code == 200


async def test_gzip_is_detected_by_its_first_bytes(bridge):
    body = json.dumps({"inputs": {"prompt": "hi"}, "options": {}}).encode()
    for content, encoding in ((gzip.compress(body), {}), (body, {"content-encoding": "application/json"})):
        response = await ask(bridge, "binding", content=content, **encoding)
        assert response_of(response) == "New York\n“é”"


async def test_miniflares_websocket_is_refused_and_its_calls_still_work(bridge):
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "mf-binding": "AI"}
    response = await bridge.client.get("/?MF-Binding=AI", headers={**upgrade, "sec-websocket-key": "eA=="})
    assert 400 <= response.status_code < 500
    assert (await ask(bridge, "miniflare")).status_code == 200


def response_of(response: httpx.Response) -> object:
    body = response.json()
    return body["result"]["response"] if "result" in body else body["response"]
