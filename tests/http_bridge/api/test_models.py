"""Models, schemas, tasks and tokens, as Cloudflare's and OpenAI's clients request them."""

import pytest

AI = "/client/v4/accounts/acc/ai"
MODEL = "@cf/meta/llama-2-7b-chat-int8"


async def found(bridge, query=""):
    response = await bridge.client.get(f"{AI}/models/search{query}")
    assert response.status_code == 200
    return response.json()


async def test_models_are_listed_in_cloudflares_shape(bridge):
    first, second = (await found(bridge))["result"]
    assert (first["name"], first["description"], first["source"], first["tags"]) == (MODEL, "First", 1, ["stand-in"])
    assert first["task"]["name"] == "Text Generation"
    assert {"property_id": "context_window", "value": "30"} in first["properties"]
    assert second["source"] == 2 and first["id"] != second["id"]


async def test_the_page_after_the_last_is_empty(bridge):
    pages = [await found(bridge, f"?page={page}&per_page=1") for page in (1, 2, 3)]
    assert [[model["name"] for model in page["result"]] for page in pages] == [[MODEL], ["@hf/other/second"], []]
    assert pages[0]["result_info"] == {"page": 1, "per_page": 1, "count": 1, "total_count": 2, "total_pages": 2}


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ("search=LLAMA", 1),
        ("search=nothing", 0),
        ("author=meta", 1),
        ("task=Text Generation", 2),
        ("task=Translation", 0),
        ("source=2", 1),
        ("hide_experimental=true&include_deprecated=true", 2),
    ],
)
async def test_models_are_narrowed_by_the_query(bridge, query, number):
    assert len((await found(bridge, f"?{query}"))["result"]) == number


@pytest.mark.parametrize("query", ["page=0", "page=x", "per_page=-1", "per_page=1001", "page=1e3"])
async def test_an_invalid_page_is_refused(bridge, query):
    response = await bridge.client.get(f"{AI}/models/search?{query}")
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5006)


async def test_the_schema_is_that_of_the_validation(bridge):
    result = (await bridge.client.get(f"{AI}/models/schema", params={"model": MODEL})).json()["result"]
    prompt, messages = result["input"]["anyOf"]
    assert prompt["properties"]["top_k"]["maximum"] == 50 and messages["required"] == ["messages"]
    assert (await bridge.ask({"prompt": "hi", "top_k": 51})).status_code == 400


async def test_the_schema_of_an_unknown_model_is_an_error(bridge):
    response = await bridge.client.get(f"{AI}/models/schema", params={"model": "@cf/x/y"})
    error = {"code": 5007, "message": "No such model @cf/x/y or task"}
    assert (response.status_code, response.json()["errors"]) == (400, [error])


async def test_there_are_two_tasks(bridge):
    tasks = (await bridge.client.get(f"{AI}/tasks/search")).json()["result"]
    assert [task["name"] for task in tasks] == ["Text Generation", "Text Embeddings"]
    assert (await bridge.client.get(f"{AI}/tasks/search?page=2")).json()["result"] == []


@pytest.mark.parametrize("base", [f"{AI}/v1", "/v1"])
async def test_openais_list_of_models(bridge, base):
    body = (await bridge.client.get(f"{base}/models")).json()
    assert body["object"] == "list" and [model["id"] for model in body["data"]] == [MODEL, "@hf/other/second"]
    assert (await bridge.client.get(f"{base}/models/{MODEL}")).json()["owned_by"] == "meta"
    assert (await bridge.client.get(f"{base}/models/none")).status_code == 404


@pytest.mark.parametrize("url", ["/client/v4/user/tokens/verify", "/client/v4/accounts/acc/tokens/verify"])
async def test_a_token_is_verified(start_bridge, url):
    bridge = await start_bridge(api_tokens=("secret",))
    good = await bridge.client.get(url, headers={"authorization": "Bearer secret"})
    assert (good.status_code, good.json()["result"]["status"]) == (200, "active")
    assert good.json()["messages"][0]["code"] == 10000
    bad = await bridge.client.get(url, headers={"authorization": "Bearer wrong"})
    error = {"code": 1000, "message": "Invalid API Token"}
    assert (bad.status_code, bad.json()["errors"]) == (401, [error])


async def test_models_without_a_server_are_unavailable(start_bridge):
    bridge = await start_bridge(grpc_address="127.0.0.1:1")
    response = await bridge.client.get(f"{AI}/models/search")
    assert (response.status_code, response.json()["errors"][0]["code"]) == (503, 7009)
