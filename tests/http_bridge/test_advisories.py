"""Attacks from advisories on other servers, tried on the bridge. SECURITY.md has the list."""

import asyncio
import json
import socket

import pytest

from tests.http_bridge.conftest import MODEL, RUN_URL

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
ROUTES = {
    "run": (RUN_URL, {"prompt": "hi"}),
    "messages": (RUN_URL, CHAT),
    "chat": ("/v1/chat/completions", {"model": MODEL, **CHAT}),
    "completion": ("/v1/completions", {"model": MODEL, "prompt": "hi"}),
}


@pytest.fixture(params=ROUTES)
def route(request):
    return ROUTES[request.param]


async def raw_answer(bridge, head: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    writer.write(head)
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    return line


@pytest.mark.parametrize(
    "host",
    [
        b"x/healthz?",
        b"x/healthz#",
        b"x/docs?a=",
        b"[::1",
        b"x@y:1/readyz?",
        b"127.0.0.1:8787/playground/main.js?",
        b"",
        b"%2f",
    ],
)
async def test_a_hostile_host_header_opens_no_route(start_bridge, servicer, host):
    bridge = await start_bridge(api_tokens=("secret",))
    body = b'{"prompt":"hi"}'
    head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n\r\n%b" % (RUN_URL.encode(), host, len(body), body)
    assert (await raw_answer(bridge, head)).startswith(b"HTTP/1.1 400 ")
    assert not servicer.requests


@pytest.mark.parametrize(
    "target", [b"http:///client", b"//healthz/../client/v4/user/tokens/verify", b"/healthz/..;/run"]
)
async def test_a_hostile_target_opens_no_route(start_bridge, servicer, target):
    bridge = await start_bridge(api_tokens=("secret",))
    assert (await raw_answer(bridge, b"POST %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % target)).startswith(
        b"HTTP/1.1 400 "
    )
    assert not servicer.requests


@pytest.mark.parametrize("field", ["n", "best_of"])
async def test_more_than_one_reply_per_request_is_refused_or_never_made(bridge, servicer, route, field):
    url, body = route
    response = await bridge.ask({**body, field: 10**9}, url=url)
    assert response.status_code in (200, 400)
    assert len(servicer.requests) == (response.status_code == 200)


async def test_a_template_in_a_request_is_refused_or_ignored(bridge, servicer, route):
    url, body = route
    response = await bridge.ask({**body, "chat_template": "{{ 1/0 }}"}, url=url)
    assert (response.status_code, len(servicer.requests)) == ((200, 1) if url == "/v1/completions" else (400, 0))


async def test_no_url_of_a_request_is_fetched(bridge, servicer):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/image.png"
        for part in (
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "image_url", "image_url": address},
            {"type": "input_audio", "input_audio": {"data": address}},
            {"type": "file", "file": {"file_id": address}},
        ):
            for url, body in ((RUN_URL, {}), ("/v1/chat/completions", {"model": MODEL})):
                sent = {**body, "messages": [{"role": "user", "content": [part]}]}
                assert (await bridge.ask(sent, url=url)).status_code == 400
        text = {"prompt": address, "tools": None}
        assert (await bridge.ask(text)).status_code == 200
        assert (await bridge.ask({**text, "image": address})).status_code == 400
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(trap.accept)
    assert len(servicer.requests) == 1


async def test_a_form_with_many_parts_is_refused_as_not_json(bridge):
    parts = b"".join(b'--b\r\ncontent-disposition: form-data; name="f%d"\r\n\r\nx\r\n' % n for n in range(20_000))
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = await bridge.client.post(RUN_URL, content=parts + b"--b--\r\n", headers=headers)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5006)
    assert response.elapsed.total_seconds() < 1


async def test_a_page_requested_in_a_thousand_ranges_is_sent_whole(bridge):
    ranges = ",".join(f"{n}-{n + 1}" for n in range(0, 10_000, 2))
    response = await bridge.client.get("/playground/main.js", headers={"range": f"bytes={ranges}"})
    assert (response.status_code, "content-range" in response.headers) == (200, False)
    assert response.elapsed.total_seconds() < 1


@pytest.mark.parametrize("path", ["/playground/../app.py", "/playground/%2e%2e/app.py", "/playground/..%2fapp.py"])
async def test_no_path_leads_out_of_the_pages(bridge, path):
    assert (await raw_answer(bridge, b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % path.encode())).startswith(
        b"HTTP/1.1 400 "
    )


@pytest.mark.parametrize("name", ["run", "messages", "chat"])
async def test_a_deeply_nested_schema_never_reaches_the_server(bridge, servicer, name):
    url, body = ROUTES[name]
    schema = json.loads('{"not":' * 90 + "{}" + "}" * 90)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert (await bridge.ask({**body, "response_format": form}, url=url)).status_code == 400
    assert not servicer.requests
