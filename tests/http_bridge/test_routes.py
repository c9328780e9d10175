"""Routes, credentials, CORS, health."""

import time
from collections import defaultdict

import pytest
from starlette.routing import Route

from http_bridge.app import create_app
from http_bridge.settings.bridge import Settings
from tests.support.processes import ROOT

RUN_URL = "/client/v4/accounts/acc/ai/run/@cf/m"
MISSING = {"code": 9106, "message": "Missing X-Auth-Key, X-Auth-Email or Authorization headers"}
MALFORMED = {"code": 9106, "message": "Authentication failed (status: 400)"}
WRONG = {"code": 10000, "message": "Authentication error"}

PLAYGROUND = [f"/playground/{path.name}" for path in (ROOT / "http_bridge/site/playground").iterdir()]


def router_envelope(error):
    return {"result": None, "success": False, "errors": [error], "messages": []}


@pytest.mark.parametrize("token", ["first", "second"])
async def test_each_token_is_accepted(start_bridge, token):
    bridge = await start_bridge(api_tokens=("first", "second"))
    assert (await bridge.ask(headers={"authorization": f"Bearer {token}"})).status_code == 200
    assert (await bridge.ask(headers={"authorization": f"bearer {token}"})).status_code == 200


@pytest.mark.parametrize(
    ("header", "status", "error"),
    [
        (None, 400, MISSING),
        ("", 400, MALFORMED),
        ("Bearer", 400, MALFORMED),
        ("Basic first", 400, MALFORMED),
        ("Bearer first second", 400, MALFORMED),
        ("first", 400, MALFORMED),
        ("Bearer wrong", 401, WRONG),
        ("Bearer firs", 401, WRONG),
        (b"Bearer \xff\xfe", 401, WRONG),
    ],
)
async def test_other_credentials_are_refused(start_bridge, servicer, header, status, error):
    bridge = await start_bridge(api_tokens=("first", "second"))
    response = await bridge.ask(headers={} if header is None else {"authorization": header})
    assert response.status_code == status
    assert response.json() == router_envelope(error)
    assert "cf-ai-req-id" not in response.headers
    assert not servicer.requests


async def test_without_tokens_every_client_is_accepted(bridge):
    for headers in ({}, {"authorization": "Bearer anything"}, {"authorization": "malformed"}):
        assert (await bridge.ask(headers=headers)).status_code == 200


async def test_every_route_but_health_and_pages_needs_a_token(start_bridge):
    bridge = await start_bridge(api_tokens=("secret",))
    public = {("GET", path) for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json", *PLAYGROUND)}
    for route in create_app(Settings(api_tokens=("secret",))).routes:
        assert isinstance(route, Route)
        for method in route.methods - {"HEAD"}:
            url = route.path_format.format_map(defaultdict(lambda: "m"))
            wrapped = {} if (method, url) == ("GET", "/") else {"mf-url": "http://workers-binding.ai/run"}
            response = await bridge.client.request(method, url, headers=wrapped)
            is_refused = response.status_code in (400, 401) and "X-Auth-Key" in response.text
            assert is_refused == ((method, url) not in public), (method, url)


async def test_pages_and_their_files_have_a_strict_policy_and_no_ranges(bridge):
    for url in ("/", "/docs", *PLAYGROUND):
        response = await bridge.client.get(url, headers={"range": "bytes=0-1,2-3"})
        assert (response.status_code, len(response.content) > 4) == (200, True)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "form-action 'none'" in policy and "unsafe" not in policy
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=()" in response.headers["permissions-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-type"].split(";")[0] in (
            "text/html",
            "text/css",
            "text/javascript",
            "text/plain",
        )
    response = await bridge.client.get("/playground/..%2fapp.py")
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 7000)


async def test_browsers_do_not_interpret_json_as_a_page(bridge):
    for response in (await bridge.ask(), await bridge.client.get("/healthz"), await bridge.ask(url="/nowhere")):
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_an_unknown_route_is_error_7000(bridge):
    run = "/client/v4/accounts/acc/ai/run"
    for url in ("/nowhere", f"{run}/", "/healthz/", "//healthz"):
        response = await bridge.ask(url=url)
        assert response.status_code == 400
        assert response.json() == router_envelope({"code": 7000, "message": "No route for that URI"})
        assert response.headers["content-type"] == "application/json"
        assert "cf-ai-req-id" not in response.headers


async def test_a_long_path_delays_no_other_request(bridge):
    begin = time.process_time()
    response = await bridge.ask(url="/run" * 15_000 + "/%0A")
    assert response.status_code == 400 and time.process_time() - begin < 0.5


@pytest.mark.parametrize("account", ["a%20b", "a:b", "x" * 129, "%00"])
async def test_an_invalid_account_is_refused(bridge, servicer, account):
    response = await bridge.ask(url=f"/client/v4/accounts/{account}/ai/run/@cf/m")
    assert (response.status_code, response.json()["errors"][0]["code"]) == (404, 7003)
    assert "perhaps your object identifier is invalid?" in response.json()["errors"][0]["message"]
    assert not servicer.requests


async def test_an_invalid_model_name_is_refused(bridge, servicer):
    for name in ("a%0Ab", "a%07b", "x" * 257):
        response = await bridge.ask(url=f"/client/v4/accounts/acc/ai/run/{name}")
        assert (response.status_code, response.json()["errors"][0]["code"]) == (404, 3042)
    assert not servicer.requests


async def test_a_key_beside_an_address_is_a_token_too(start_bridge):
    bridge = await start_bridge(api_tokens=("secret",))
    for key, status in (("secret", 200), ("wrong", 401)):
        assert (await bridge.ask(headers={"x-auth-email": "a@b.example", "x-auth-key": key})).status_code == status


async def test_a_wrong_method_names_the_right_one(bridge):
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        response = await bridge.client.request(method, RUN_URL)
        assert response.status_code == 405
        assert response.json() == router_envelope(
            {"code": 7001, "message": f"{method} not supported for requested URI."}
        )
        assert response.headers["allow"] == "POST"


async def test_preflight_passes_without_a_token(start_bridge):
    bridge = await start_bridge(api_tokens=("secret",), cors_origins=("https://page.example",))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    response = await bridge.client.options(RUN_URL, headers={"origin": "https://page.example", **asked})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    assert "authorization" in response.headers["access-control-allow-headers"]


async def test_stream_carries_cors_headers(start_bridge):
    bridge = await start_bridge(cors_origins=("https://page.example",))
    response = await bridge.ask({"prompt": "hi", "stream": True}, headers={"origin": "https://page.example"})
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    exposed = "cf-ai-req-id, retry-after, tailrace-error, tailrace-skipped-tools"
    assert response.headers["access-control-expose-headers"] == exposed
    assert response.headers["content-type"] == "text/event-stream"
    assert response.text.endswith("data: [DONE]\n\n")


async def test_errors_carry_cors_headers(start_bridge):
    bridge = await start_bridge(api_tokens=("secret",), cors_origins=("*",))
    for url in (RUN_URL, "/nowhere"):
        response = await bridge.ask(url=url, headers={"origin": "https://page.example"})
        assert response.status_code == 400
        assert response.headers["access-control-allow-origin"] == "*"


async def test_other_origins_get_no_cors_headers(start_bridge):
    bridge = await start_bridge(cors_origins=("https://page.example",))
    response = await bridge.ask(headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in response.headers


async def test_without_the_setting_there_is_no_cors(bridge):
    response = await bridge.ask(headers={"origin": "https://page.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_healthz_answers_without_server_and_token(start_bridge):
    bridge = await start_bridge(grpc_address="127.0.0.1:1", api_tokens=("secret",))
    response = await bridge.client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert (await bridge.client.head("/healthz")).status_code == 200


async def test_readyz_follows_the_health_of_the_server(bridge, backend):
    for is_serving, status in ((False, 503), (True, 200), (False, 503)):
        await backend.set_serving(is_serving)
        response = await bridge.client.get("/readyz")
        assert response.status_code == status
    assert "not serving" in response.json()["reason"]


async def test_readyz_reports_an_unreachable_server(start_bridge):
    bridge = await start_bridge(grpc_address="127.0.0.1:1")
    response = await bridge.client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "reason": "The inference server cannot be reached."}


async def test_readyz_reports_a_wrong_server(bridge):
    response = await bridge.client.get("/readyz")
    assert response.status_code == 503
    assert "does not offer tailrace.v1.InferenceService" in response.json()["reason"]


async def test_an_exception_in_a_run_reveals_no_internals(bridge, monkeypatch):
    def crash(*args, **kwargs):
        raise ValueError("secret detail")

    monkeypatch.setattr("http_bridge.api.workers_ai.shapes.run_request", crash)
    response = await bridge.ask()
    assert response.status_code == 500
    assert response.headers["cf-ai-req-id"] in response.json()["errors"][0]["message"]
    assert "secret" not in response.text


async def test_an_exception_in_another_route_reveals_no_internals(bridge, monkeypatch):
    async def crash(self):
        raise ValueError("secret detail")

    monkeypatch.setattr("http_bridge.upstream.client.Upstream.why_not_ready", crash)
    response = await bridge.client.get("/readyz")
    assert response.status_code == 500
    assert response.headers["cf-ai-req-id"] in response.json()["errors"][0]["message"]
    assert "secret" not in response.text
