"""Streams through proxies with their default settings: whole after a long silence, and one event at a time."""

import asyncio
import time

import httpx
import pytest

from tests.clients.node_programs import node_folder
from tests.http_bridge.conftest import RUN_URL
from tests.proxies.programs import running_caddy, running_nginx, running_node

pytestmark = pytest.mark.proxies

STREAM = {"prompt": "hi", "stream": True}
NUM_TOKENS = 6
# Seconds between two tokens. A proxy that passes them on at once keeps the distance.
PAUSE = 0.2


async def slow_words(reply):
    await queued(0)(reply)


async def say_words(reply):
    for number in range(NUM_TOKENS):
        await reply.say(f"word{number} ")
        await asyncio.sleep(PAUSE)
    await reply.complete()


def queued(seconds):
    """Return a script that waits before its first token, as in the wait queue."""

    async def script(reply):
        await reply.accept()
        await asyncio.sleep(seconds)
        await say_words(reply)

    return script


async def arrivals(address, path=RUN_URL):
    """Return the text of a stream, and the seconds at which each of its tokens arrived."""
    times, text = [], ""
    started = time.monotonic()
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False) as client:
        headers = {"accept-encoding": "gzip"}
        async with client.stream("POST", path, json=STREAM, headers=headers) as response:
            assert response.status_code == 200
            async for chunk in response.aiter_text():
                times += [time.monotonic() - started] * chunk.count("word")
                text += chunk
    return text, times


def assert_one_by_one(times):
    assert len(times) == NUM_TOKENS
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert min(gaps) > PAUSE / 2 and max(gaps) < PAUSE * 3, gaps


@pytest.fixture(params=["nginx", "caddy", "node"])
def proxy(request, tmp_path, packages):
    """Return a function that starts one of the proxies before a bridge."""
    return {
        "nginx": lambda bridge: running_nginx(tmp_path, bridge),
        "caddy": lambda bridge: running_caddy(tmp_path, bridge),
        "node": lambda bridge: running_node(packages, tmp_path, bridge, node_folder()),
    }[request.param]


async def test_tokens_arrive_one_by_one_and_the_first_at_once(proxy, start_bridge, servicer):
    servicer.script = slow_words
    bridge = await start_bridge()
    async with proxy(f"127.0.0.1:{bridge.port}") as address:
        text, times = await arrivals(address)
    assert text.endswith("data: [DONE]\n\n") and times[0] < PAUSE
    assert_one_by_one(times)


async def test_the_compressing_proxy_would_collect_the_events_without_no_transform(
    packages, tmp_path, start_bridge, servicer
):
    servicer.script = slow_words
    bridge = await start_bridge()
    async with running_node(packages, tmp_path, f"127.0.0.1:{bridge.port}", node_folder()) as address:
        text, times = await arrivals(address, f"/without{RUN_URL}")
    assert text.endswith("data: [DONE]\n\n") and times[0] > PAUSE * 3


# A tenth of the times of an ordinary stack: a comment after 10 s, and nginx's limit of 60 s between two reads.
async def test_a_stream_that_waits_longer_than_nginx_does_arrives_whole(tmp_path, start_bridge, servicer):
    servicer.script = queued(6.5)
    bridge = await start_bridge(stream_comment_seconds=1)
    async with running_nginx(tmp_path, f"127.0.0.1:{bridge.port}", "proxy_read_timeout 3s;") as address:
        text, times = await arrivals(address)
    assert text.count(": keep-alive") >= 5 and text.endswith("data: [DONE]\n\n")
    assert times[0] > 6
    assert_one_by_one(times)


async def test_nginx_would_cut_such_a_stream_without_comments(tmp_path, start_bridge, servicer):
    servicer.script = queued(4)
    bridge = await start_bridge(stream_comment_seconds=0)
    async with running_nginx(tmp_path, f"127.0.0.1:{bridge.port}", "proxy_read_timeout 2s;") as address:
        with pytest.raises((httpx.RemoteProtocolError, AssertionError)):
            text, _ = await arrivals(address)
            assert "[DONE]" in text
    async with asyncio.timeout(10):
        await servicer.cancelled.wait()
