"""What is counted: every accepted request has exactly one end, and nothing stays behind."""

import asyncio
import urllib.request

import grpc
import pytest

from tests.engines import until
from tests.processes import free_address
from tests.servers import MODEL, chat, running_server, write_catalog


@pytest.fixture
async def running(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    settings = {"max_running_seqs": 2, "max_waiting_seqs": 1, "account_requests_per_minute": 6}
    async with running_server(catalog, metrics_address=free_address(), **settings) as running:
        yield running


async def scraped(running) -> dict[str, float]:
    address = running.server._settings.metrics_address

    def read() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            return answer.read().decode()

    lines = (await asyncio.to_thread(read)).splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if not line.startswith("#") and "_created" not in line
    }


async def read(call) -> str:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_each_end_is_counted_once_and_no_block_stays(running, monkeypatch):
    assert await read(running.stub.Run(chat(max_tokens=3))) == "OK"
    left = running.stub.Run(chat(temperature=0.0))
    await left.read()
    left.cancel()
    await until(lambda: running.engine.num_in_flight == 0)
    monkeypatch.setattr(running.engine.runner, "prefill", lambda *_: 1 / 0)
    assert await read(running.stub.Run(chat("another one", max_tokens=3))) == "INTERNAL"
    await until(lambda: running.engine.num_blocks_in_use == 0)
    model = f'model="{MODEL}"'
    found = await scraped(running)
    assert found[f"tailrace_requests_accepted_total{{{model}}}"] == 3
    for end in ("completed", "cancelled", "failed"):
        assert found[f'tailrace_requests_ended_total{{end="{end}",{model}}}'] == 1
    for gauge in ("requests_running", "requests_waiting"):
        assert found[f"tailrace_{gauge}{{{model}}}"] == 0


async def test_refusals_are_counted_by_their_reason(running):
    request = chat(max_tokens=1)
    request.account = "a"
    assert [await read(running.stub.Run(request)) for _ in range(7)] == ["OK"] * 6 + ["RESOURCE_EXHAUSTED"]
    found = await scraped(running)
    assert found['tailrace_requests_refused_total{reason="RATE_LIMITED"}'] == 1
