"""API tokens for one account: the file, the accounts that its tokens may use, and its reload."""

import hashlib
import logging
import time

import pytest

from http_bridge.auth.token_file import TokenFile, read_tokens
from tailrace_shared.config_errors import ConfigurationError
from tests.http_bridge.conftest import MODEL

API = "/client/v4"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def line(account, token):
    return f"{account} {hashlib.sha256(token.encode()).hexdigest()}\n"


def run_url(account):
    return f"{API}/accounts/{account}/ai/run/{MODEL}"


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr("http_bridge.auth.token_file.CHECK_SECONDS", 0.0)
    path = tmp_path / "tokens"
    path.write_text("# ours\n" + line("ada", "first") + "\n  " + line("bob", "second") + line("*", "any"))
    return path


@pytest.mark.parametrize(("account", "status"), [("second", 403), ("sk+proj", 404)])
async def test_a_token_in_the_place_of_the_account_is_named(start_bridge, servicer, path, account, status):
    bridge = await start_bridge(api_tokens_file=path, api_tokens=("sk+proj", "plain"))
    response = await bridge.ask(url=run_url(account), headers=bearer("first" if status == 403 else "plain"))
    assert response.status_code == status
    assert "the path has an API token where the account belongs" in response.json()["errors"][0]["message"]
    assert not servicer.requests


async def test_a_token_is_valid_for_its_account_alone(start_bridge, servicer, path):
    bridge = await start_bridge(api_tokens_file=path, api_tokens=("plain",))
    asked = {("first", "ada"): 200, ("first", "bob"): 403, ("second", "bob"): 200, ("any", "bob"): 200}
    for (token, account), status in {**asked, ("plain", "ada"): 200, ("wrong", "ada"): 401}.items():
        response = await bridge.ask(url=run_url(account), headers=bearer(token))
        assert response.status_code == status, (token, account)
        if status != 200:
            error = {"code": 10000, "message": "Authentication error"}
            assert response.json() == {"result": None, "success": False, "errors": [error], "messages": []}
    assert [request.account for request in servicer.requests] == ["ada", "bob", "bob", "ada"]


async def test_without_an_account_in_the_path_the_tokens_account_is_used(start_bridge, servicer, path):
    bridge = await start_bridge(api_tokens_file=path)
    headers = {**bearer("second"), "cf-consn-model-id": MODEL}
    wrapped = {"mf-url": "http://workers-binding.ai/run?version=3", "mf-header-cf-consn-model-id": MODEL}
    for url, body, more in (
        ("/v1/chat/completions", CHAT, {}),
        ("/run?version=3", {"inputs": {"prompt": "hi"}}, {}),
        ("/", {"inputs": {"prompt": "hi"}}, wrapped),
    ):
        assert (await bridge.ask(body, url=url, headers={**headers, **more})).status_code == 200
    await bridge.ask(CHAT, url="/v1/chat/completions", headers=bearer("any"))
    assert [request.account for request in servicer.requests] == ["bob", "bob", "bob", ""]


@pytest.mark.parametrize(("account", "status"), [("bob", 200), ("ada", 403), ("b:b", 403)])
@pytest.mark.parametrize("end", ["", f"/workers-ai/{MODEL}"])
async def test_a_wrapped_request_is_for_the_tokens_account_alone(start_bridge, servicer, path, account, status, end):
    bridge = await start_bridge(api_tokens_file=path)
    address = f"http://workers-binding.ai/ai-gateway/v1/{account}/g{end}"
    step = {"provider": "workers-ai", "endpoint": MODEL, "query": {"prompt": "hi"}}
    for url, wrapped in (
        ("/", {"mf-url": address}),
        (f"{API}/accounts/bob/ai/run/proxy", {"x-forwarded": address}),
    ):
        body = step["query"] if end else [step]
        response = await bridge.client.post(url, json=body, headers={**bearer("second"), **wrapped})
        assert response.status_code == status, response.text
    assert [request.account for request in servicer.requests] == ["bob"] * (2 if status == 200 else 0)


async def test_the_place_of_usage_depends_on_the_path(start_bridge, path):
    bridge = await start_bridge(api_tokens_file=path)
    response = await bridge.ask({**CHAT, "stream": True}, url="/v1/chat/completions", headers=bearer("first"))
    assert "usage" not in response.text


async def test_tokens_of_the_file_are_verified(start_bridge, path):
    bridge = await start_bridge(api_tokens_file=path)
    asked = {"user": 200, "accounts/ada": 200, "accounts/bob": 403}
    for place, status in asked.items():
        response = await bridge.client.get(f"{API}/{place}/tokens/verify", headers=bearer("first"))
        assert response.status_code == status, place
    response = await bridge.client.get(f"{API}/user/tokens/verify", headers=bearer("wrong"))
    assert (response.status_code, response.json()["errors"][0]["code"]) == (401, 1000)


async def test_the_accounts_are_those_of_the_token(start_bridge, path):
    bridge = await start_bridge(api_tokens_file=path, api_tokens=("plain",))
    for token, account in {"first": "ada", "second": "bob", "any": "local", "plain": "local"}.items():
        response = await bridge.client.get(f"{API}/accounts", headers=bearer(token))
        assert (response.status_code, [each["id"] for each in response.json()["result"]]) == (200, [account])
    response = await bridge.client.get(f"{API}/accounts", headers=bearer("wrong"))
    assert (response.status_code, response.json()["errors"][0]["code"]) == (401, 10000)


async def test_tokens_are_replaced_while_the_bridge_runs(start_bridge, path):
    bridge = await start_bridge(api_tokens_file=path)
    path.write_text(line("ada", "third"))
    statuses = [
        (await bridge.ask(url=run_url("ada"), headers=bearer(token))).status_code for token in ("first", "third")
    ]
    assert statuses == [401, 200]
    path.write_text("")
    assert (await bridge.ask(url=run_url("ada"), headers=bearer("third"))).status_code == 401


def test_an_invalid_file_is_logged_once_and_its_last_tokens_stay(path, caplog):
    file = TokenFile(path)
    before = dict(file.accounts())
    for damage in (lambda: path.write_text("ada first\n"), path.unlink):
        damage()
        caplog.clear()
        assert [file.accounts() for _ in range(3)] == [before] * 3
        (record,) = caplog.records
        assert "the last valid version stays active" in record.message and record.levelno == logging.WARNING
    path.write_text(line("ada", "third"))
    assert list(file.accounts().values()) == ["ada"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line("ada", "t") + "ada secret-token\n", "line 2 is not `<account> <SHA-256 of the token"),
        ("ada\n", "line 1 is not"),
        (line("a b", "t"), "line 1 is not"),
        (line("a/b", "t"), "line 1 is not"),
        (line("ada", "t") + "\n" + line("bob", "t"), "the token of line 3 is also in an earlier line"),
        ("\udcff", "it is not UTF-8"),
    ],
)
def test_a_wrong_line_is_named_and_not_repeated(path, text, message):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as caught:
        read_tokens(path)
    assert str(caught.value).startswith(f"TAILRACE_API_TOKENS_FILE={path}: {message}")
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigurationError, match="the file does not exist"):
            read_tokens(path)


def test_a_lookup_among_thousands_of_tokens_is_fast(path):
    path.write_text("".join(line("ada", f"token {index}") for index in range(5000)))
    file, digest = TokenFile(path), hashlib.sha256(b"token 4999").digest()
    started = time.process_time()
    assert all(file.accounts()[digest] == "ada" for _ in range(1000))
    assert time.process_time() - started < 1.0  # a millisecond each; hundredths of one are usual
