"""Metrics: every accepted request is counted with exactly one end, and gauges return to zero."""

import asyncio

import grpc
import pytest

from inference_server.observability.metrics import MAX_ACCOUNTS, Metrics
from tests.support.engines import until
from tests.support.observability.metrics import documented, exposed, read_metrics, samples
from tests.support.processes import free_address
from tests.support.servers import MODEL, chat, running_server, write_catalog

# Dashboards and alerts of users depend on these names.
_MODEL = ("model",)
NAMES = {
    ("tailrace_accepted_draft_tokens_total", "counter", _MODEL),
    ("tailrace_batch_requests_waiting", "gauge", _MODEL),
    ("tailrace_build_info", "gauge", ("version",)),
    ("tailrace_draft_tokens_total", "counter", _MODEL),
    ("tailrace_e2e_request_latency_seconds", "histogram", _MODEL),
    ("tailrace_embedded_texts_total", "counter", ("model",)),
    ("tailrace_generation_tokens_total", "counter", ("account", "model")),
    ("tailrace_inter_token_latency_seconds", "histogram", _MODEL),
    ("tailrace_kv_blocks_in_use", "gauge", _MODEL),
    ("tailrace_kv_cache_usage_ratio", "gauge", _MODEL),
    ("tailrace_preemptions_total", "counter", _MODEL),
    ("tailrace_prefix_cache_hit_tokens_total", "counter", _MODEL),
    ("tailrace_prefix_cache_queried_tokens_total", "counter", _MODEL),
    ("tailrace_prompt_tokens_total", "counter", ("account", "model")),
    ("tailrace_request_decode_time_seconds", "histogram", _MODEL),
    ("tailrace_request_generation_tokens", "histogram", _MODEL),
    ("tailrace_request_inference_time_seconds", "histogram", _MODEL),
    ("tailrace_request_prefill_time_seconds", "histogram", _MODEL),
    ("tailrace_request_prompt_tokens", "histogram", _MODEL),
    ("tailrace_request_queue_time_seconds", "histogram", _MODEL),
    ("tailrace_requests_accepted_total", "counter", _MODEL),
    ("tailrace_requests_ended_total", "counter", ("end", "model")),
    ("tailrace_requests_finished_total", "counter", ("finish_reason", "model")),
    ("tailrace_requests_refused_total", "counter", ("model", "reason")),
    ("tailrace_requests_running", "gauge", _MODEL),
    ("tailrace_requests_waiting", "gauge", _MODEL),
    ("tailrace_slots", "gauge", _MODEL),
    ("tailrace_step_tokens", "histogram", _MODEL),
    ("tailrace_time_to_first_token_seconds", "histogram", _MODEL),
    ("tailrace_utilization_ratio", "gauge", ()),
}


@pytest.fixture
async def running(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    settings = {"max_running_seqs": 2, "max_waiting_seqs": 1, "account_requests_per_minute": 6}
    async with running_server(catalog, metrics_address=free_address(), **settings) as running:
        yield running


async def scraped(running) -> str:
    return await asyncio.to_thread(read_metrics, running.server._settings.metrics_address)


async def read(call) -> str:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_each_end_is_counted_once_and_all_blocks_are_freed(running, monkeypatch):
    assert await read(running.stub.Run(chat(max_tokens=3))) == "OK"
    left = running.stub.Run(chat(temperature=0.0))
    await left.read()
    left.cancel()
    await until(lambda: running.engine.num_in_flight == 0)
    monkeypatch.setattr(running.engine.runner, "prefill", lambda *_: 1 / 0)
    assert await read(running.stub.Run(chat("another one", max_tokens=3))) == "INTERNAL"
    await until(lambda: running.engine.num_blocks_in_use == 0)
    model = f'model="{MODEL}"'
    found = samples(await scraped(running))
    assert found[f"tailrace_requests_accepted_total{{{model}}}"] == 3
    for end in ("completed", "cancelled", "failed"):
        assert found[f'tailrace_requests_ended_total{{end="{end}",{model}}}'] == 1
    for gauge in ("requests_running", "requests_waiting"):
        assert found[f"tailrace_{gauge}{{{model}}}"] == 0


async def test_refusals_are_counted_by_their_reason(running):
    request = chat(max_tokens=1)
    request.account = "a"
    assert [await read(running.stub.Run(request)) for _ in range(7)] == ["OK"] * 6 + ["RESOURCE_EXHAUSTED"]
    found = samples(await scraped(running))
    assert found[f'tailrace_requests_refused_total{{model="{MODEL}",reason="RATE_LIMITED"}}'] == 1


async def test_names_types_and_labels_are_stable(running):
    assert await read(running.stub.Run(chat(max_tokens=3))) == "OK"
    request = chat()
    request.model = "nobody's"
    assert await read(running.stub.Run(request)) == "NOT_FOUND"
    text = await scraped(running)
    assert exposed(text) == NAMES
    assert documented("Inference server") == NAMES
    found = samples(text)
    assert found['tailrace_requests_refused_total{model="unknown",reason="UNKNOWN_MODEL"}'] == 1
    assert found["process_open_fds"] > 0


async def test_a_request_is_counted_token_by_token_and_phase_by_phase(running):
    request = chat(temperature=0.0, max_tokens=50)
    request.account = "a"
    events = [event async for event in running.stub.Run(request)]
    usage = events[-1].completed.usage
    found = samples(await scraped(running))
    model = f'model="{MODEL}"'
    for name, tokens in (("prompt", usage.prompt_tokens), ("generation", usage.completion_tokens)):
        assert found[f'tailrace_{name}_tokens_total{{account="a",{model}}}'] == tokens
        assert found[f"tailrace_request_{name}_tokens_sum{{{model}}}"] == tokens
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_inference_time"):
        assert found[f"tailrace_{name}_seconds_count{{{model}}}"] == 1
    deltas = [event.delta.tokens for event in events if event.HasField("delta")]
    assert found[f"tailrace_inter_token_latency_seconds_count{{{model}}}"] == sum(deltas[1:]) > 0
    # The warm-up had a prompt too. The last token of a reply is never an input.
    assert found[f"tailrace_step_tokens_sum{{{model}}}"] >= usage.prompt_tokens + usage.completion_tokens - 1
    assert found[f"tailrace_prefix_cache_queried_tokens_total{{{model}}}"] >= usage.prompt_tokens
    assert found[f"tailrace_slots{{{model}}}"] == 2


async def test_a_request_cancelled_in_the_queue_has_a_queue_time(running):
    calls = [running.stub.Run(chat(temperature=0.0)) for _ in range(2)]
    for call in calls:
        await call.read()
    calls.append(running.stub.Run(chat()))
    await until(lambda: running.engine.num_waiting == 1)
    for call in calls:
        call.cancel()
    await until(lambda: running.engine.num_in_flight == 0)
    found = samples(await scraped(running))
    assert found[f'tailrace_request_queue_time_seconds_count{{model="{MODEL}"}}'] == 3
    assert found[f'tailrace_e2e_request_latency_seconds_count{{model="{MODEL}"}}'] == 0


def test_later_accounts_share_one_label():
    metrics = Metrics()
    labels = [metrics.account(f"account {n}") for n in range(MAX_ACCOUNTS + 2)]
    assert labels[-3:] == [f"account {MAX_ACCOUNTS - 1}", "other", "other"]
    assert (metrics.account("account 0"), metrics.account("")) == ("account 0", "none")
