"""DNS rebinding: without API tokens the bridge answers only under the names of this machine and the allowed ones."""

import asyncio
from collections import defaultdict

import pytest

from http_bridge.app import create_app
from http_bridge.auth.allowed_hosts import HostNames
from http_bridge.settings.bridge import Settings
from tests.http_bridge.conftest import MODEL, RUN_URL

OWN = [
    "localhost",
    "LocalHost:8787",
    "localhost.",
    "app.localhost:1",
    "127.0.0.1",
    "127.9.8.7:80",
    "[::1]",
    "[::1]:8787",
]
FOREIGN = [
    "evil.example",
    "evil.example:8787",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evillocalhost",
    "192.168.1.5:8787",
    "0.0.0.0:8787",
    "127.1",
    "2130706433",
    "[fe80::1]",
    "localhost@evil.example",
    "evil.example#localhost",
    "localhost:8787:8787",
    "[::1",
    "::1",
    "localhost,evil.example",
    " ",
]
EVIL = {"host": "evil.example:8787"}
RUNTIME = {"host": "workers-binding.ai", "cf-consn-model-id": MODEL}
BINDING_BODY = {"inputs": {"prompt": "hi"}}


@pytest.mark.parametrize("host", OWN)
def test_names_of_this_machine_are_accepted(host):
    assert HostNames().accepts(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(host):
    assert not HostNames().accepts(host)


def test_the_setting_adds_names_without_regard_to_case_and_port():
    names = HostNames(("Tailrace.Example", ".lan", "[fe80::1]", "10.0.0.5"))
    for host in ("tailrace.example:1", "TAILRACE.example.", "a.lan", "b.a.lan:80", "[FE80::1]:8787", "10.0.0.5:80"):
        assert names.accepts(host), host
    for host in ("a.tailrace.example", "lan", "evillan", "10.0.0.50", "evil.example"):
        assert not names.accepts(host), host
    assert HostNames(("*",)).accepts("evil.example")


async def test_every_route_but_health_refuses_a_foreign_host(start_bridge, servicer):
    bridge = await start_bridge()
    for route in create_app(Settings()).routes:
        for method in route.methods:
            url = route.path_format.format_map(defaultdict(lambda: "m"))
            response = await bridge.client.request(method, url, headers=EVIL)
            assert (response.status_code == 403) == (url not in ("/healthz", "/readyz")), (method, url)
    for url in ("/nowhere", RUN_URL + "/%00"):
        assert (await bridge.client.get(url, headers=EVIL)).status_code == 403
    assert not servicer.requests


async def test_health_is_open_to_probes_by_address(bridge):
    for url, status in (("/healthz", 200), ("/readyz", 503)):
        assert (await bridge.client.get(url, headers={"host": "10.1.2.3:8787"})).status_code == status


async def test_the_refusal_has_the_form_of_its_route_and_names_the_setting(bridge):
    rest = (await bridge.ask(headers=EVIL)).json()
    assert (rest["success"], rest["errors"][0]["code"]) == (False, 9109)
    openai = (await bridge.ask(url="/v1/chat/completions", headers=EVIL)).json()
    assert (openai["error"]["type"], openai["error"]["code"]) == ("permission_error", "9109")
    worker = (await bridge.ask(BINDING_BODY, url="/run", headers=EVIL)).json()
    assert (worker["name"], worker["internalCode"], worker["httpCode"]) == ("AiError", 9109, 403)
    for message in (rest["errors"][0]["message"], openai["error"]["message"], worker["description"]):
        assert "'evil.example:8787'" in message and "TAILRACE_ALLOWED_HOSTS" in message


async def test_a_refused_request_gets_no_cors_headers_and_is_counted(start_bridge):
    bridge = await start_bridge(cors_origins=("*",))
    asked = {**EVIL, "origin": "http://evil.example:8787", "access-control-request-method": "POST"}
    response = await bridge.client.options(RUN_URL, headers=asked)
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]
    count = {"route": "other", "status": "403"}
    # A request is counted after its answer was sent.
    async with asyncio.timeout(10):
        while bridge.metrics.registry.get_sample_value("tailrace_http_requests_total", count) != 1:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("settings", [{"allowed_hosts": ("evil.example",)}, {"api_tokens": ("secret",)}])
async def test_the_setting_or_tokens_accept_the_host(start_bridge, settings):
    bridge = await start_bridge(**settings)
    response = await bridge.ask(headers={**EVIL, "authorization": "Bearer secret"})
    assert response.status_code == 200


async def test_a_file_of_tokens_accepts_any_host_too(start_bridge, tmp_path):
    path = tmp_path / "tokens"
    path.write_text("")
    bridge = await start_bridge(api_tokens_file=path)
    assert (await bridge.ask(headers={**EVIL, "authorization": "Bearer x"})).status_code == 401


@pytest.mark.parametrize("target", ["http://evil.example/v1/models", "HTTPS://evil.example:1"])
async def test_the_authority_of_an_absolute_target_is_checked(bridge, target):
    response = await raw(bridge, f"GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 403 ")


async def test_a_request_of_http_1_0_without_a_host_is_served(bridge):
    assert (await raw(bridge, "GET /docs HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_the_listener_of_the_binding_checks_hosts_even_beside_tokens(start_bridge, servicer):
    bridge = await start_bridge(api_tokens=("secret",), binding_address="127.0.0.1:0")
    url = f"http://127.0.0.1:{bridge.binding_port}"
    for path in ("/run?version=3", "/healthz", "/"):
        response = await bridge.ask(BINDING_BODY, url=url + path, headers=EVIL)
        assert (response.status_code, response.json()["internalCode"]) == (403, 9109)
    assert not servicer.requests
    response = await bridge.ask(BINDING_BODY, url=f"{url}/run?version=3", headers={"cf-consn-model-id": MODEL})
    assert response.status_code == 200


async def test_the_workers_runtime_may_use_its_own_name_and_a_page_of_that_name_may_not(bridge):
    # workerd sends the name that its AI class requests, whatever address the service is bound to.
    for headers, status in ((RUNTIME, 200), ({**RUNTIME, "origin": "http://workers-binding.ai"}, 403)):
        response = await bridge.ask(BINDING_BODY, url="/run?version=3", headers=headers)
        assert response.status_code == status
    for url in ("/", "/docs", "/v1/models"):
        assert (await bridge.client.get(url, headers=RUNTIME)).status_code == 403


async def raw(bridge, head: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    writer.write(head.encode())
    line = await reader.readline()
    writer.close()
    return line
