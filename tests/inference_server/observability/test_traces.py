"""The server's spans on a tiny Llama: their attributes, and the spans of incomplete runs."""

import json
import subprocess
import sys

import grpc
import pytest

from inference_server.observability.tracing.exporter import tracing_from_environment
from inference_server.observability.tracing.genai_messages import input_messages, output_messages
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import until
from tests.support.observability.collector import collecting
from tests.support.processes import ROOT
from tests.support.servers import MODEL, chat, running_server, write_catalog

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROMPT = "where is new york"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def collector(monkeypatch):
    with collecting(monkeypatch) as collector:
        yield collector


@pytest.fixture
async def running(collector, tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    async with running_server(catalog, max_running_seqs=1) as running:
        yield running


async def reply_to(running, request, **metadata: str) -> str:
    call = running.stub.Run(request, metadata=tuple(metadata.items()))
    return "".join([event.delta.text async for event in call])


async def test_a_run_and_its_phases_have_their_attributes(running, collector):
    request = chat(PROMPT, max_tokens=5, temperature=0.0, top_k=3, seed=7, stop=["never"])
    await reply_to(running, request, traceparent=CALLER, **{"x-request-id": "abc"})
    run, queue, prefill, decode = await collector.named("chat", "queue", "prefill", "decode")
    assert (run.span.trace_id.hex(), run.span.parent_span_id.hex()) == (CALLER[3:35], CALLER[36:52])
    assert run.span.name == f"chat {MODEL}"
    num_tokens = run.attributes.pop("gen_ai.usage.input_tokens")
    assert 0 < run.attributes.pop("gen_ai.response.time_to_first_chunk") < 5
    assert run.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "tailrace.v1.InferenceService/Run",
        "rpc.response.status_code": "OK",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tailrace",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_k": 3,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ["never"],
        "gen_ai.response.id": "abc",
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert queue.attributes == {"tailrace.admission_position": 1}
    assert prefill.attributes == {"tailrace.prompt_tokens": num_tokens, "tailrace.cached_tokens": 0}
    assert decode.attributes == {"tailrace.completion_tokens": 5}


async def test_no_text_is_in_any_span(running, collector):
    text = await reply_to(running, chat(PROMPT, max_tokens=20, seed=1))
    spans = str([span.span for span in await collector.named("chat", "queue", "prefill", "decode")])
    assert PROMPT not in spans and text.strip() not in spans


async def test_prompt_and_reply_are_in_the_span_if_enabled(collector, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    async with running_server(catalog) as running:
        text = await reply_to(running, chat(PROMPT, max_tokens=20, seed=1))
        (run,) = await collector.named("chat")
    asked, replied = (json.loads(run.attributes[f"gen_ai.{name}.messages"]) for name in ("input", "output"))
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": PROMPT}]}]
    parts = [{"type": "text", "content": text}]
    assert replied == [{"role": "assistant", "parts": parts, "finish_reason": "length"}]


async def test_a_cancelled_run_has_the_phases_that_it_reached(running, collector):
    call = running.stub.Run(chat(temperature=0.0))
    while not (await call.read()).HasField("delta"):
        pass
    call.cancel()
    await until(lambda: running.engine.num_in_flight == 0)
    run, queue, prefill, decode = await collector.named("chat", "queue", "prefill", "decode")
    assert [span.is_error for span in (run, queue, prefill, decode)] == [True, False, False, True]
    assert run.attributes["error.type"] == decode.attributes["error.type"] == "cancelled"


async def test_a_run_cancelled_while_waiting_has_only_a_queue_phase(running, collector):
    first = running.stub.Run(chat(temperature=0.0))
    await first.read()
    waiting = running.stub.Run(pb.RunRequest(model=MODEL, text="hello"))
    await waiting.initial_metadata()
    waiting.cancel()
    run, queue = await collector.named("text_completion", "queue")
    assert run.is_error and queue.is_error and queue.span.parent_span_id == run.span.span_id
    assert len(collector.spans) == 2
    first.cancel()


async def test_a_refused_run_is_a_span_without_phases(running, collector):
    with pytest.raises(grpc.aio.AioRpcError):
        await reply_to(running, chat(PROMPT, temperature=9.0, seed=2**64 - 1))  # too large for OTLP's integers
    (run,) = await collector.named("chat")
    assert run.is_error and len(collector.spans) == 1
    assert (run.attributes["error.type"], run.attributes["rpc.response.status_code"]) == (
        "INVALID_FIELD",
        "INVALID_ARGUMENT",
    )


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported():
    code = (
        "import asyncio, sys\n"
        "from inference_server.settings.server import Settings\nfrom inference_server.grpc_api.server import Server\n"
        "async def start(): Server(Settings())\n"
        "asyncio.run(start()); print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_endpoint_without_the_extra_stops_the_start(monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4317")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[server,traces\]'"):
        tracing_from_environment()


def test_thoughts_are_parts_of_their_own():
    turn = pb.ChatTurn(role="assistant", content="There.", reasoning="Look.")
    asked = json.loads(input_messages(pb.RunRequest(chat=pb.Chat(turns=[turn]))))
    replied = json.loads(output_messages("There.", (), "stop", "Look."))
    parts = [{"type": "reasoning", "content": "Look."}, {"type": "text", "content": "There."}]
    assert asked[0]["parts"] == replied[0]["parts"] == parts
