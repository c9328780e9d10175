"""The bridge as a process: start, signals, exit codes."""

import asyncio
import json
import os
import re
import signal
import socket
import sys

import httpx
import pytest

from tests.support.observability.metrics import read_metrics, samples
from tests.support.processes import free_address

RUN_URL = "/client/v4/accounts/acc/ai/run/@cf/m"


@pytest.fixture
async def spawn():
    """Return a function that starts `python -m http_bridge` with settings. Kills remaining processes at the end."""
    processes = []

    async def start(**settings):
        environment = {**os.environ, **{f"TAILRACE_{name.upper()}": value for name, value in settings.items()}}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "http_bridge", env=environment, stderr=asyncio.subprocess.PIPE
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def refuses_connections(url):
    """Wait until the bridge has closed its listener, the first step of its shutdown."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.01)


async def listening_url(process):
    async with asyncio.timeout(20):
        line = (await process.stderr.readline()).decode()
    return re.search(r"listening on (http://\S+), calling ", line)[1]


async def get_healthz(url):
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{url}/healthz")).status_code


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_the_bridge_cleanly(spawn, signal_number):
    process = await spawn(http_address="127.0.0.1:0")
    assert await get_healthz(await listening_url(process)) == 200
    process.send_signal(signal_number)
    async with asyncio.timeout(5):
        assert (await process.stderr.read(), await process.wait()) == (b"", 0)


async def test_the_second_listener_serves_only_the_binding(spawn, backend):
    addresses = {"http_address": "127.0.0.1:0", "binding_address": "127.0.0.1:0", "grpc_address": backend.address}
    process = await spawn(**addresses, api_tokens="secret")
    first = await listening_url(process)
    second = (await process.stderr.readline()).decode().split()[-4].rstrip(",")
    headers = {"cf-consn-model-id": "@cf/m"}
    async with httpx.AsyncClient(trust_env=False) as client:
        asked = [
            await client.post(f"{url}{path}", json={"inputs": {"prompt": "hi"}, "prompt": "hi"}, headers=headers)
            for url in (first, second)
            for path in ("/run?version=3", RUN_URL)
        ]
    assert [response.status_code for response in asked] == [400, 400, 200, 400]
    assert asked[2].json()["response"] and asked[3].json()["internalCode"] == 7000


async def test_running_stream_may_finish_after_sigterm(spawn, backend, servicer):
    go_on = asyncio.Event()

    async def wait_between(reply):
        await reply.accept()
        await reply.say("one")
        await go_on.wait()
        await reply.say("two")
        await reply.complete()

    servicer.script = wait_between
    process = await spawn(http_address="127.0.0.1:0", grpc_address=backend.address)
    url = await listening_url(process)
    async with httpx.AsyncClient(trust_env=False) as client:
        async with client.stream("POST", url + RUN_URL, json={"prompt": "hi", "stream": True}) as response:
            chunks = response.aiter_bytes()
            await anext(chunks)
            process.send_signal(signal.SIGTERM)
            await refuses_connections(url)
            go_on.set()
            rest = b"".join([chunk async for chunk in chunks])
    assert rest.endswith(b"data: [DONE]\n\n")
    async with asyncio.timeout(5):
        assert await process.wait() == 0


async def test_stream_beyond_the_grace_is_cancelled(spawn, backend, servicer):
    servicer.script = lambda reply: reply.forever()
    process = await spawn(http_address="127.0.0.1:0", grpc_address=backend.address, http_shutdown_grace_seconds="0")
    port = int((await listening_url(process)).rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"prompt":"hi"}'
    writer.write(
        b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (RUN_URL.encode(), len(body)) + body
    )
    await servicer.entered.wait()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()
        assert await process.wait() == 0
    writer.close()


async def test_metrics_have_their_own_address_and_logs_can_be_json(spawn):
    address = free_address()
    process = await spawn(
        http_address="127.0.0.1:0", http_metrics_address=address, log_format="json", log_level="debug"
    )
    assert await get_healthz(await listening_url(process)) == 200
    # A request is counted a moment after its client has the answer.
    lines = []
    async with asyncio.timeout(10):
        while not (lines and lines[-1]["message"].startswith("health: 200 ")):
            lines.append(json.loads(await process.stderr.readline()))
    found = samples(await asyncio.to_thread(read_metrics, address))
    assert found['tailrace_http_requests_total{route="health",status="200"}'] == 1


async def test_a_metrics_port_in_use_is_one_sentence_and_exit_code_1(spawn):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await spawn(http_address="127.0.0.1:0", http_metrics_address=address)
        async with asyncio.timeout(20):
            output, code = (await process.stderr.read()).decode(), await process.wait()
    assert code == 1
    assert output == f"The bridge cannot start. TAILRACE_HTTP_METRICS_ADDRESS={address}: Address already in use.\n"


async def test_port_in_use_is_one_sentence_and_exit_code_1(spawn):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = await spawn(http_address=f"127.0.0.1:{taken.getsockname()[1]}")
        async with asyncio.timeout(20):
            text = (await process.stderr.read()).decode()
    assert await process.wait() == 1
    assert re.fullmatch(
        r"The bridge cannot start\. Port (\d+) \(TAILRACE_HTTP_ADDRESS=127\.0\.0\.1:\1\) is in use already, by python.*"
        r" \(process \d+\)\. Set TAILRACE_HTTP_ADDRESS to another address, for example 127\.0\.0\.1:\d+\.\n",
        text,
    )


async def test_wrong_setting_is_one_sentence_and_exit_code_1(spawn):
    process = await spawn(http_address="0.0.0.0:0")
    async with asyncio.timeout(20):
        text = (await process.stderr.read()).decode()
    assert await process.wait() == 1
    assert text.startswith("The bridge cannot start. TAILRACE_HTTP_ADDRESS=0.0.0.0:0 is open to other machines")
    assert text.count("\n") == 1


async def test_wrong_token_file_is_one_sentence_and_exit_code_1(spawn, tmp_path):
    (tmp_path / "tokens").write_text("# ours\nada\n")
    process = await spawn(http_address="127.0.0.1:0", api_tokens_file=str(tmp_path / "tokens"))
    async with asyncio.timeout(20):
        text = (await process.stderr.read()).decode()
    assert await process.wait() == 1
    assert re.fullmatch(r"The bridge cannot start\. TAILRACE_API_TOKENS_FILE=\S+: line 2 is not .*\n", text)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_bridge_listens_on_ipv6(spawn):
    process = await spawn(http_address="[::1]:0")
    url = await listening_url(process)
    assert url.startswith("http://[::1]:")
    assert await get_healthz(url) == 200


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_localhost_is_served_at_both_loopback_addresses(spawn):
    process = await spawn(http_address="localhost:0")
    async with asyncio.timeout(20):
        line = (await process.stderr.readline()).decode()
    first, second = re.search(
        r"listening on (http://127\.0\.0\.1:\S+) and (http://\[::1\]:\S+), calling ", line
    ).groups()
    assert httpx.URL(first).port == httpx.URL(second).port
    assert [await get_healthz(first), await get_healthz(second)] == [200, 200]


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_the_bindings_listeners_are_told_apart_at_both_addresses(spawn, backend):
    addresses = {"http_address": "localhost:0", "binding_address": "localhost:0", "grpc_address": backend.address}
    process = await spawn(**addresses, api_tokens="secret")
    async with asyncio.timeout(20):
        lines = [(await process.stderr.readline()).decode() for _ in range(2)]
    urls = re.findall(r"http://[^\s,]+", "".join(lines))
    async with httpx.AsyncClient(trust_env=False) as client:
        asked = [
            await client.post(f"{url}/run", json={"inputs": {"prompt": "hi"}}, headers={"cf-consn-model-id": "@cf/m"})
            for url in urls
        ]
    assert [response.status_code for response in asked] == [400, 400, 200, 200]
