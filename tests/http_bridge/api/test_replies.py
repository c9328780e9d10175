"""Replies that are not streamed, and the gRPC requests that runs become."""

import asyncio
import json
import time

import pytest

RUN = "/client/v4/accounts/acc/ai/run/"
MODEL = "@cf/meta/llama-2-7b-chat-int8"


async def test_reply_is_one_envelope(bridge, servicer):
    response = await bridge.ask()
    assert response.text == (
        '{"result":{"response":"New York\\n“é”","usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}},'
        '"success":true,"errors":[],"messages":[]}'
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cf-ai-req-id"] == servicer.request_ids[0]


@pytest.mark.parametrize("path", [MODEL, "@cf%2Fmeta%2Fllama-2-7b-chat-int8", "%40cf/meta/llama-2-7b-chat-int8"])
async def test_model_may_be_percent_encoded(bridge, servicer, path):
    assert (await bridge.ask(url=RUN + path)).status_code == 200
    assert servicer.requests[0].model == MODEL
    assert servicer.requests[0].account == "acc"


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "nonsense", None])
async def test_the_body_is_json_for_any_content_type(bridge, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    response = await bridge.client.post(RUN + MODEL, content=b'{"prompt": "hi"}', headers=headers)
    assert response.status_code == 200


async def test_query_is_ignored(bridge):
    assert (await bridge.ask(url=RUN + MODEL + "?queueRequest=false&x=1")).status_code == 200


async def test_sampling_reaches_the_server(bridge, servicer):
    sampling = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 9999999999}
    penalties = {"repetition_penalty": 1.5, "frequency_penalty": -1, "presence_penalty": 2}
    await bridge.ask({"prompt": "hi", "stop": ["\n"], **sampling, **penalties})
    sent = servicer.requests[0].sampling
    assert {name: getattr(sent, name) for name in (*sampling, *penalties)} == sampling | penalties
    assert list(sent.stop) == ["\n"]


async def test_reject_if_busy_reaches_the_server(bridge, servicer):
    await bridge.ask({"prompt": "hi", "options": {"rejectIfBusy": True}})
    assert servicer.requests[0].reject_if_busy


async def test_body_over_the_limit_is_refused(start_bridge, servicer):
    bridge = await start_bridge(max_body_bytes=1000)
    response = await bridge.ask({"prompt": "x" * 1000})
    assert response.status_code == 413
    assert response.json()["errors"][0]["code"] == 3006
    assert not servicer.requests


async def test_body_over_the_limit_is_refused_without_a_content_length_too(start_bridge):
    async def chunks():
        for _ in range(20):
            yield b"x" * 100

    bridge = await start_bridge(max_body_bytes=1000)
    response = await bridge.client.post(RUN + MODEL, content=chunks())
    assert response.status_code == 413


async def test_an_endless_body_ends_in_the_timeout(start_bridge):
    bridge = await start_bridge(request_timeout_seconds=0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    writer.write(b"POST /client/v4/accounts/a/ai/run/m HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()


RUBBISH = [
    b"",
    b" ",
    b"{",
    b"null",
    b"[]",
    b'"prompt"',
    b"12",
    b"\xff\xfe",
    b"\x1f\x8b\x08\x00",
    b'{"prompt": "\xc3"}',
    b"prompt=hi&stream=true",
    b"{'prompt': 'hi'}",
    b'{"prompt": "hi"} x',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"prompt": ' + b"9" * 10_000 + b"}",
    b'{"prompt": "hi", "top_k": NaN}',
    b'{"prompt": "hi", "seed": ' + b"9" * 10_000 + b"}",
    b'{"prompt": "\\ud800"}',
    b'{"messages": [[], 1, null, "x", {"role": {}, "content": [1, [], {"type": "image_url"}]}]}',
    b'{"messages": {"role": "user"}}',
    b'{"prompt": ["hi"], "stop": {}, "options": 1, "stream": "yes", "raw": 1}',
    '{"prompt": "hi"}'.encode("utf-16"),
]


async def test_a_malformed_body_is_refused_and_the_next_request_works(bridge, servicer):
    for body in RUBBISH:
        response = await bridge.client.post(RUN + MODEL, content=body)
        assert response.status_code == 400, body[:50]
        assert response.json()["errors"][0]["code"] == (5006 if body else 3003)
        assert len(response.content) < 2000
    assert not servicer.requests
    assert (await bridge.ask()).status_code == 200


async def test_the_bridge_survives_bytes_that_are_not_http(bridge):
    for malformed in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" + b"a" * 99_999,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
        writer.write(malformed)
        await asyncio.sleep(0.02)
        writer.transport.abort()
    assert (await bridge.ask()).status_code == 200


async def test_a_large_body_does_not_delay_others(start_bridge, servicer):
    bridge = await start_bridge(max_messages=100_000)
    body = json.dumps({"messages": [{"role": "u", "content": ""}] * 100_000})
    began, longest, last = time.process_time(), 0.0, time.thread_time()
    large = asyncio.create_task(bridge.client.post(RUN + MODEL, content=body))
    while not large.done():
        await asyncio.sleep(0)
        now = time.thread_time()  # CPU time, which other processes and threads do not lengthen
        longest, last = max(longest, now - last), now
    assert large.result().status_code == 200
    assert len(servicer.requests[0].chat.turns) == 100_000
    assert longest < (time.process_time() - began) / 4  # no step of the event loop processes the whole body


async def test_large_prompt_passes(bridge, servicer):
    response = await bridge.client.post(
        RUN + MODEL, content=json.dumps({"prompt": "é" * 1_000_000}, ensure_ascii=False)
    )
    assert response.status_code == 200
    assert len(servicer.requests[0].chat.turns[0].content) == 1_000_000


async def test_largest_body_fits_a_grpc_message(bridge, servicer):
    body = b'{"prompt":"' + b"x" * (4_000_000 - 13) + b'"}'
    assert (await bridge.client.post(RUN + MODEL, content=body)).status_code == 200
    assert len(servicer.requests[0].chat.turns[0].content) == len(body) - 13
