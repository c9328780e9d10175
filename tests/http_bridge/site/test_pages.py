"""The transfer of the pages: compressed, with a tag, and not again to a browser that has them."""

import gzip

import pytest

from tests.support.processes import ROOT

SITE = ROOT / "http_bridge" / "site" / "playground"
SCRIPT = "/playground/main.js"


async def raw(bridge, **headers):
    async with bridge.client.stream("GET", SCRIPT, headers=headers) as response:
        return response, b"".join([part async for part in response.aiter_raw()])


@pytest.mark.parametrize("accepted", ["gzip", "br, gzip;q=0.5", "GZIP"])
async def test_a_script_is_sent_compressed_to_those_who_accept_it(bridge, accepted):
    response, body = await raw(bridge, **{"accept-encoding": accepted})
    assert response.headers["content-encoding"] == "gzip" and "accept-encoding" in response.headers["vary"]
    assert gzip.decompress(body) == (SITE / "main.js").read_bytes()


@pytest.mark.parametrize("accepted", ["identity", "br", "gzip;q=0", "gzip; q=0.0"])
async def test_a_script_is_sent_as_it_is_to_others(bridge, accepted):
    response, body = await raw(bridge, **{"accept-encoding": accepted})
    assert "content-encoding" not in response.headers and body == (SITE / "main.js").read_bytes()


@pytest.mark.parametrize("accepted", ["gzip", "identity"])
async def test_a_current_copy_is_not_sent_again(bridge, accepted):
    tag = (await raw(bridge, **{"accept-encoding": accepted}))[0].headers["etag"]
    response, body = await raw(bridge, **{"accept-encoding": accepted, "if-none-match": f'"x", W/{tag}'})
    assert (response.status_code, body, response.headers["etag"]) == (304, b"", tag)
    assert "content-security-policy" in response.headers


async def test_an_old_copy_is_replaced(bridge):
    assert (await raw(bridge, **{"if-none-match": '"old"'}))[0].status_code == 200


async def test_the_account_of_a_token_is_listed(start_bridge, tmp_path):
    path = tmp_path / "tokens"
    # The digest of the token "first".
    path.write_text("ada a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e\n")
    bridge = await start_bridge(api_tokens_file=path, api_tokens=("any",))
    for token, account in (("first", "ada"), ("any", "local")):
        response = await bridge.client.get("/client/v4/accounts", headers={"authorization": f"Bearer {token}"})
        assert [entry["id"] for entry in response.json()["result"]] == [account]
