"""The bridge's spans, the context that it forwards, and failing collectors."""

import asyncio
import queue
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from http_bridge.app import create_app
from http_bridge.observability.tracing import exporter
from http_bridge.observability.tracing.base import trace_context
from http_bridge.settings.bridge import Settings
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.tracing import otlp
from tests.http_bridge.conftest import MODEL, new_york, running_bridge
from tests.support.engines import until
from tests.support.observability.collector import collecting
from tests.support.processes import ROOT, free_address

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def collector(monkeypatch):
    with collecting(monkeypatch) as collector:
        yield collector


def metadata_of(servicer) -> dict[str, str]:
    """Return a dictionary that gets the metadata of the next run."""
    found: dict[str, str] = {}

    async def script(reply) -> None:
        found.update(dict(reply.context.invocation_metadata()))
        await new_york(reply)

    servicer.script = script
    return found


async def test_the_http_span_and_its_call_follow_the_conventions(collector, start_bridge):
    bridge = await start_bridge()
    body = {"prompt": "hi", "stream": True, "max_tokens": 9, "temperature": 0.7, "seed": 3}
    request_id = (await bridge.ask(body)).headers["cf-ai-req-id"]
    http, call = await collector.named("POST", "Run")
    assert http.span.name == "POST /client/v4/accounts/{account}/ai/run/{model}"
    assert http.attributes == {
        "http.request.method": "POST",
        "http.route": "/client/v4/accounts/{account}/ai/run/{model}",
        "http.response.status_code": 200,
        "url.path": f"/client/v4/accounts/acc/ai/run/{MODEL}",
        "url.scheme": "http",
    }
    assert 0 < call.attributes.pop("gen_ai.response.time_to_first_chunk") < 5
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "tailrace.v1.InferenceService/Run",
        "rpc.response.status_code": "OK",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tailrace",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stream": True,
        "gen_ai.response.id": request_id,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    assert call.events == ["tailrace.first_token"]


async def test_a_call_that_fails_shows_its_status_and_the_answer_its_own(collector, start_bridge, servicer):
    servicer.script = lambda reply: reply.refuse(grpc.StatusCode.INTERNAL, "GENERATION_FAILED")
    bridge = await start_bridge()
    assert (await bridge.ask()).status_code == 500
    http, call = await collector.named("POST", "Run")
    assert call.is_error and call.attributes["rpc.response.status_code"] == call.attributes["error.type"] == "INTERNAL"
    assert http.is_error and http.attributes["http.response.status_code"] == 500


async def test_a_stream_that_breaks_is_an_error_of_the_call(collector, start_bridge, servicer):
    async def script(reply) -> None:
        await reply.accept()
        await reply.say("New")
        await reply.refuse(grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")

    servicer.script = script
    bridge = await start_bridge()
    assert (await bridge.ask({"prompt": "hi", "stream": True})).status_code == 200
    _, call = await collector.named("POST", "Run")
    assert call.is_error and call.attributes["rpc.response.status_code"] == "UNAVAILABLE"


async def test_a_client_that_disconnects_ends_both_spans_with_an_error(collector, start_bridge, servicer):
    async def script(reply) -> None:
        await reply.accept()
        await reply.say("New")
        await reply.forever()

    servicer.script = script
    bridge = await start_bridge()
    reader, writer = await bridge.open({"prompt": "hi", "stream": True})
    await reader.readuntil(b"New")
    writer.close()
    http, call = await collector.named("POST", "Run")
    assert http.is_error and http.attributes["error.type"] == "cancelled"
    assert call.is_error and call.attributes["rpc.response.status_code"] == "CANCELLED"


async def test_a_seed_too_large_for_otlp_keeps_its_span(collector, start_bridge, servicer):
    bridge = await start_bridge()
    body = {"model": MODEL, "prompt": "hi", "seed": -2}
    assert (await bridge.ask(body, url="/v1/completions")).status_code == 200
    (call,) = await collector.named("Run")
    assert servicer.requests[0].sampling.seed == 2**64 - 2 and "gen_ai.request.seed" not in call.attributes


async def test_collector_headers_and_service_name_are_read(collector, start_bridge, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=edge")
    await (await start_bridge()).ask()
    assert (await collector.named("POST"))[0].service == "edge"
    assert collector.headers["api-key"] == "secret"


async def test_a_collector_is_reached_over_http(start_bridge, monkeypatch):
    taken: queue.Queue[str] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.put(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        await (await start_bridge()).ask()
        assert await asyncio.to_thread(taken.get, timeout=5) == "/v1/traces"
        server.shutdown()


async def test_without_traces_the_callers_context_still_reaches_the_server(start_bridge, servicer):
    metadata = metadata_of(servicer)
    bridge = await start_bridge()
    assert (await bridge.ask(headers={"traceparent": CALLER, "tracestate": "vendor=1"})).status_code == 200
    assert (metadata["traceparent"], metadata["tracestate"]) == (CALLER, "vendor=1")


async def test_an_unsampled_trace_is_continued_but_not_sent(collector, start_bridge, servicer):
    metadata = metadata_of(servicer)
    bridge = await start_bridge()
    await bridge.ask(headers={"traceparent": CALLER[:-1] + "0"})
    assert metadata["traceparent"].startswith(CALLER[:36]) and metadata["traceparent"].endswith("-00")
    await bridge.ask(headers={"traceparent": CALLER})
    assert len(await collector.named("POST", "Run")) == len(collector.spans)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", CALLER.upper())],
        [("traceparent", CALLER + "-more")],
        [("traceparent", "ff" + CALLER[2:])],
        [("traceparent", "00-" + "0" * 32 + CALLER[35:])],
        [("traceparent", CALLER), ("traceparent", CALLER)],
        [("tracestate", "vendor=1")],
    ],
)
def test_an_invalid_trace_context_is_not_forwarded(headers):
    assert trace_context([(name.encode(), value.encode()) for name, value in headers]) == ()


@pytest.mark.parametrize("state", ["vendor=" + "x" * 512, "vendor=é", "vendor=\n"])
def test_a_trace_state_that_gRPC_cannot_carry_is_left_out(state):
    given = [(b"traceparent", CALLER.encode()), (b"tracestate", state.encode("latin-1"))]
    assert trace_context(given) == (("traceparent", CALLER),)


async def test_an_unreachable_collector_does_not_affect_requests(backend, monkeypatch, caplog):
    monkeypatch.setenv(ENDPOINT, f"http://{free_address()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    monkeypatch.setattr(otlp, "FLUSH_SECONDS", 0.1)
    async with running_bridge(backend.address) as bridge:
        for _ in range(5):
            assert (await bridge.ask()).status_code == 200
            await asyncio.sleep(0.02)
        await until(lambda: "export" in caplog.text)
        started = time.monotonic()
    assert time.monotonic() - started < 2
    logged = [record.msg for record in caplog.records if "export" in record.msg]
    assert logged and len(logged) == len(set(logged))


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported():
    code = "import sys, http_bridge.__main__ as m; m.create_app(m.Settings()); print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_opentelemetrys_own_switches_are_applied(monkeypatch, name, value):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4317")
    monkeypatch.setenv(name, value)
    assert not isinstance(exporter.tracing_from_environment(), exporter.OtlpTracing)


def test_an_endpoint_without_the_extra_stops_the_start(monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4317")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[bridge,traces\]'"):
        create_app(Settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (ENDPOINT, "127.0.0.1:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ],
)
def test_a_variable_that_cannot_be_used_stops_the_start(monkeypatch, name, value):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4317")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="OTEL_"):
        exporter.tracing_from_environment()
