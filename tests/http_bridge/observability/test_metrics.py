"""The bridge's metrics and log lines of requests."""

import asyncio
import gc
import json
import logging

import pytest

from tailrace_shared.logs import JsonLines, TextLines
from tests.http_bridge.conftest import RUN_URL
from tests.support.observability.metrics import documented, exposed, read_metrics, samples
from tests.support.processes import free_address

# Dashboards and alerts of users depend on these names.
_ROUTE = ("route",)
NAMES = {
    ("tailrace_batch_requests", "gauge", ("state",)),
    ("tailrace_batch_requests_ended_total", "counter", ("result",)),
    ("tailrace_batches", "gauge", ("status",)),
    ("tailrace_build_info", "gauge", ("version",)),
    ("tailrace_http_clients_gone_total", "counter", _ROUTE),
    ("tailrace_http_connections", "gauge", ()),
    ("tailrace_http_connections_refused_total", "counter", ()),
    ("tailrace_http_request_duration_seconds", "histogram", _ROUTE),
    ("tailrace_http_requests_in_flight", "gauge", _ROUTE),
    ("tailrace_http_requests_total", "counter", ("route", "status")),
    ("tailrace_http_time_to_first_event_seconds", "histogram", _ROUTE),
    ("tailrace_upstream_servers", "gauge", ("state",)),
}


async def scraped(bridge) -> str:
    address = free_address()
    host, _, port = address.partition(":")
    bridge.metrics.serve(host, int(port))
    return await asyncio.to_thread(read_metrics, address)


def value(bridge, name: str, **labels: str) -> float:
    return bridge.metrics.registry.get_sample_value(f"tailrace_http_{name}", labels) or 0


async def until_value(wanted: float, bridge, name: str, **labels: str) -> None:
    async with asyncio.timeout(5):
        while value(bridge, name, **labels) != wanted:
            await asyncio.sleep(0.005)


async def test_names_types_and_labels_are_stable(bridge):
    await bridge.ask()
    await until_value(1, bridge, "requests_total", route="run", status="200")
    text = await scraped(bridge)
    assert exposed(text) == NAMES
    assert documented("Bridge") == NAMES
    assert samples(text)["process_open_fds"] > 0


@pytest.mark.parametrize(
    ("method", "url", "route", "status"),
    [
        ("POST", RUN_URL, "run", 200),
        ("GET", RUN_URL, "run", 405),
        ("POST", "/v1/chat/completions", "chat_completions", 400),
        ("POST", "/v1/completions", "completions", 200),
        ("POST", "/run", "binding", 400),
        ("GET", "/v1/models", "models", 200),
        ("GET", "/healthz", "health", 200),
        ("GET", "/docs", "pages", 200),
        ("POST", "/v1/images/generations", "other", 404),
        ("GET", "/any/thing", "other", 400),
    ],
)
async def test_a_request_is_counted_by_its_route_and_status(bridge, method, url, route, status):
    body = {"model": "@cf/m", "prompt": "hi"} if method == "POST" else None
    response = await bridge.client.request(method, url, json=body)
    assert response.status_code == status
    await until_value(1, bridge, "requests_total", route=route, status=str(status))
    assert value(bridge, "request_duration_seconds_count", route=route) == 1
    assert value(bridge, "requests_in_flight", route=route) == 0


async def test_only_streams_have_a_time_to_first_event(bridge):
    await bridge.ask()
    assert value(bridge, "time_to_first_event_seconds_count", route="run") == 0
    await bridge.ask({"prompt": "hi", "stream": True})
    assert value(bridge, "time_to_first_event_seconds_count", route="run") == 1


async def test_a_disconnected_client_is_counted_and_its_connection_is_not(bridge, servicer):
    async def one_word(reply):
        await reply.accept()
        await reply.say("one")
        await reply.forever()

    servicer.script = one_word
    reader, writer = await bridge.open({"prompt": "hi", "stream": True})
    await reader.readuntil(b"one")
    assert value(bridge, "requests_in_flight", route="run") == value(bridge, "connections") == 1
    writer.close()
    await until_value(1, bridge, "clients_gone_total", route="run")
    assert value(bridge, "requests_total", route="run", status="200") == 1
    assert value(bridge, "requests_in_flight", route="run") == value(bridge, "connections") == 0


async def test_disconnecting_before_the_answer_has_its_own_status(bridge, servicer):
    async def silence(reply):
        await reply.forever()

    servicer.script = silence
    _, writer = await bridge.open({"prompt": "hi"})
    await servicer.entered.wait()
    writer.close()
    await until_value(1, bridge, "requests_total", route="run", status="499")


async def test_connections_beyond_the_limit_are_counted(start_bridge):
    bridge = await start_bridge(max_connections=1)
    _, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    await until_value(1, bridge, "connections")
    reader, second = await asyncio.open_connection("127.0.0.1", bridge.port)
    assert b" 503 " in await reader.readline()
    assert value(bridge, "connections_refused_total") == value(bridge, "connections") == 1
    writer.close()
    second.close()


async def test_a_run_has_one_log_line_with_all_its_fields(bridge, caplog):
    with caplog.at_level(logging.INFO):
        response = await bridge.ask({"prompt": "a secret", "stream": True})
        await bridge.client.get("/healthz")
        await until_value(1, bridge, "requests_total", route="health", status="200")
    (record,) = [record for record in caplog.records if record.name.startswith("http_bridge")]
    line = json.loads(JsonLines("http_bridge").format(record))
    assert (line["level"], line["service"], line["route"], line["status"]) == ("info", "http_bridge", "run", 200)
    assert (line["request_id"], line["account"], line["stream"]) == (response.headers["cf-ai-req-id"], "acc", True)
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reason"]) == (5, 7, "stop")
    assert 0 < line["first_event_seconds"] <= line["total_seconds"]
    assert "secret" not in caplog.text


async def test_the_line_of_a_refusal_has_its_code(bridge, caplog):
    with caplog.at_level(logging.INFO):
        await bridge.ask({"prompt": 7})
        await until_value(1, bridge, "requests_total", route="run", status="400")
    (record,) = [record for record in caplog.records if record.name.startswith("http_bridge")]
    text = TextLines("http_bridge").format(record)
    assert " INFO    bridge: run: 400 after " in text and " error_code=5006 account=acc model=@cf/meta/" in text


async def test_a_request_leaves_no_reference_cycle(bridge):
    # The bridge seldom collects cycles, so that objects in one would accumulate to megabytes.
    await bridge.ask({"prompt": "hi", "stream": True})
    await until_value(1, bridge, "requests_total", route="run", status="200")
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await bridge.ask({"prompt": "hi", "stream": True})
        await until_value(2, bridge, "requests_total", route="run", status="200")
        gc.collect()
        kept = {type(thing).__qualname__ for thing in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not kept & {"Record", "RequestResponseCycle", "_Exchange", "Trace"}
