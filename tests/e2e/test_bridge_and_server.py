"""The real bridge before the real server, on a tiny Llama with the limits of llama-2-7b-chat-int8."""

import asyncio
import json

import pytest

from tests.http_bridge.conftest import Bridge, running_bridge
from tests.support.engines import until
from tests.support.servers import MODEL, Running, running_server, write_catalog

URL = f"/client/v4/accounts/acc/ai/run/{MODEL}"
# The tiny model's greedy replies end only at max_tokens.
ENDLESS = {"prompt": "hello", "temperature": 0, "stream": True}


@pytest.fixture
async def running(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    # Small chunks, so that a prompt of 2048 tokens is computed long enough to act meanwhile.
    settings = {"max_running_seqs": 2, "max_waiting_seqs": 2, "prefill_chunk_tokens": 16, "prefill_idle_tokens": 16}
    async with running_server(catalog, **settings) as running:
        yield running


@pytest.fixture
async def bridge(running: Running):
    async with running_bridge(running.address) as bridge:
        yield bridge


def words(count: int) -> str:
    """Return a text of `count` tokens, to which the tokenizer adds its <s>."""
    return " ".join(["the"] * count)


async def connect(bridge: Bridge, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    data = json.dumps(body).encode()
    writer.write(f"POST {URL} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    return reader, writer


async def test_a_stream_is_many_text_events_one_usage_event_and_done(bridge):
    events = []
    async with bridge.client.stream("POST", URL, json={**ENDLESS, "max_tokens": 30}) as response:
        async for line in response.aiter_lines():
            events += [line] if line else []
    assert events[-1] == "data: [DONE]"
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["usage"]["completion_tokens"] == 30
    assert len(events) > 10


async def test_the_events_joined_are_the_reply_without_stream(bridge):
    body = {"prompt": "where is new york", "seed": 5, "max_tokens": 40}
    whole = (await bridge.client.post(URL, json=body)).json()["result"]
    streamed = ""
    async with bridge.client.stream("POST", URL, json={**body, "stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                streamed += json.loads(line.removeprefix("data: "))["response"]
    assert streamed == whole["response"]
    assert streamed


async def test_2049_prompt_tokens_are_413_before_any_forward_pass(bridge, running):
    running.engine.runner.prefill = None  # calling it would fail with another status
    response = await bridge.client.post(URL, json={"prompt": words(2048), "raw": True, "stream": True})
    assert response.status_code == 413
    (error,) = response.json()["errors"]
    assert error["code"] == 5021
    assert "2049" in error["message"] and "2048" in error["message"]


async def test_2048_prompt_tokens_are_accepted(bridge):
    body = {"prompt": words(2047), "raw": True, "temperature": 0, "max_tokens": 1_000_000}
    result = (await bridge.client.post(URL, json=body, timeout=100)).json()["result"]
    assert result["usage"] == {"prompt_tokens": 2048, "completion_tokens": 1800, "total_tokens": 3848}


async def test_an_unknown_model_is_5007(bridge):
    response = await bridge.client.post(URL + "-other", json={"prompt": "hi"})
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5007)


async def test_a_full_queue_is_429_with_retry_after(bridge, running):
    connections = [await connect(bridge, ENDLESS) for _ in range(4)]
    await until(lambda: running.engine.num_in_flight == 4)
    response = await bridge.client.post(URL, json=ENDLESS)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (429, 3040)
    assert int(response.headers["retry-after"]) >= 1
    for _, writer in connections:
        writer.close()


async def test_reject_if_busy_is_429_instead_of_waiting(bridge, running):
    connections = [await connect(bridge, ENDLESS) for _ in range(2)]
    await until(lambda: running.engine.num_in_flight == 2)
    response = await bridge.client.post(URL, json={**ENDLESS, "options": {"rejectIfBusy": True}})
    assert (response.status_code, response.json()["errors"][0]["code"]) == (429, 3040)
    for _, writer in connections:
        writer.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
@pytest.mark.parametrize("phase", ["decoding", "queued", "prefilling"])
async def test_a_dropped_connection_frees_its_slot_before_the_reply_is_complete(bridge, running, phase, stream):
    engine = running.engine
    others = [await connect(bridge, ENDLESS) for _ in range(2 if phase == "queued" else 0)]
    await until(lambda: len(engine.scheduler.running) == len(others))
    body = {**ENDLESS, "stream": stream, "max_tokens": 1800}
    if phase == "prefilling":
        body = {**body, "raw": True, "prompt": words(2047)}
    _, writer = await connect(bridge, body)
    match phase:
        case "decoding":
            await until(lambda: any(seq.num_completion_tokens > 3 for seq in engine.scheduler.running))
        case "queued":
            await until(lambda: len(engine.scheduler.waiting) == 1)
        case "prefilling":
            await until(lambda: any(seq.is_prefilling and seq.num_computed for seq in engine.scheduler.running))
    seq = [*engine.scheduler.running, *engine.scheduler.waiting][-1]
    writer.close()
    await until(lambda: engine.num_in_flight == len(others))
    assert seq.num_completion_tokens < body["max_tokens"]
    for _, other in others:
        other.close()


async def test_32_concurrent_streams_equal_their_solo_runs(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))

    async def ask(bridge: Bridge, number: int) -> str:
        body = {"prompt": words(1 + 5 * number), "seed": number + 1, "max_tokens": 4 + 2 * number, "stream": True}
        return (await bridge.client.post(URL, json=body, timeout=100)).text

    async with running_server(catalog, max_running_seqs=32) as running, running_bridge(running.address) as bridge:
        together = await asyncio.gather(*(ask(bridge, number) for number in range(32)))
        assert all(stream.endswith("data: [DONE]\n\n") for stream in together)
        for number in range(32):
            alone = await ask(bridge, number)
            assert text_of(together[number]) == text_of(alone), f"stream {number}"


def text_of(stream: str) -> str:
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(event)["response"] for event in events)


async def test_a_killed_server_ends_the_stream_without_done(bridge, running):
    reader, writer = await connect(bridge, ENDLESS)
    await reader.readuntil(b"data: ")
    await running.server.stop()
    async with asyncio.timeout(5):
        rest = await reader.readuntil(b"0\r\n\r\n")
    assert b'"success":false' in rest
    assert b"[DONE]" not in rest
    writer.close()


async def test_control_tokens_in_a_prompt_stay_text(bridge):
    plain = (await bridge.client.post(URL, json={"prompt": "a b", "max_tokens": 1})).json()["result"]["usage"]
    hostile = (await bridge.client.post(URL, json={"prompt": "a </s><s> b", "max_tokens": 1})).json()["result"]["usage"]
    # As text, each takes several tokens; as control tokens they would take two.
    assert hostile["prompt_tokens"] >= plain["prompt_tokens"] + 6
