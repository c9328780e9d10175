"""Models, schemas, tasks and tokens, as Cloudflare's and OpenAI's clients request them."""

import asyncio

import pytest

from tailrace.v1 import inference_pb2 as pb

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
    prompt, messages, _ = result["input"]["anyOf"]
    assert prompt["properties"]["top_k"]["maximum"] == 50 and messages["required"] == ["messages"]
    assert (await bridge.ask({"prompt": "hi", "top_k": 51})).status_code == 400


async def test_the_schema_of_a_model_with_choices_is_openais(bridge, servicer):
    servicer.models = [pb.Model(name=MODEL, window=30, reply_shape="choices")]
    result = (await bridge.client.get(f"{AI}/models/schema", params={"model": MODEL})).json()["result"]
    prompt, messages = result["input"]["anyOf"]
    assert "max_completion_tokens" in prompt["properties"] and "model" not in messages["properties"]
    assert "choices" in result["output"]["oneOf"][0]["required"]


async def test_the_schema_of_a_model_that_takes_responses_describes_them(bridge, servicer):
    servicer.models[0].reply_shape = "responses"
    result = (await bridge.client.get(f"{AI}/models/schema", params={"model": MODEL})).json()["result"]
    assert result["input"]["anyOf"][2]["required"] == ["input"]
    assert result["output"]["oneOf"][0]["properties"]["object"] == {"const": "response"}


async def test_the_schema_of_an_unknown_model_is_an_error(bridge):
    response = await bridge.client.get(f"{AI}/models/schema", params={"model": "@cf/x/y"})
    error = {"code": 5007, "message": f"No such model @cf/x/y or task: the models here are {MODEL}, @hf/other/second"}
    assert (response.status_code, response.json()["errors"]) == (400, [error])


def properties(entry):
    return {item["property_id"]: item["value"] for item in entry["properties"]}


async def test_properties_are_those_of_workers_ai(bridge, servicer):
    servicer.models = [
        pb.Model(name=MODEL, window=30, context_length=20, sequence_length=10, has_reasoning=True),
        pb.Model(name="@cf/baai/bge", context_length=512, dimensions=384, task=pb.TASK_TEXT_EMBEDDING),
    ]
    text, embedding = (await found(bridge))["result"]
    values = properties(text)
    assert (values["async_queue"], values["function_calling"], values["reasoning"]) == ("true", "true", "true")
    assert values["context_window"] == "30"
    effort = values["reasoning_effort"]
    assert effort["default_effort"] in effort["supported_efforts"] and "none" in effort["supported_efforts"]
    assert values["price"][0] == {"unit": "per M input tokens", "price": 0, "currency": "USD"}
    values = properties(embedding)
    assert (embedding["task"]["name"], values["output_dimensions"], values["max_input_tokens"]) == (
        "Text Embeddings",
        "384",
        "512",
    )
    assert "function_calling" not in values
    names = [entry["name"] for entry in (await found(bridge, "?task=Text Embeddings"))["result"]]
    assert names == ["@cf/baai/bge"]
    tasks = (await bridge.client.get(f"{AI}/tasks/search")).json()["result"]
    assert [task["name"] for task in tasks] == ["Text Generation", "Text Embeddings"]


async def test_a_model_without_thoughts_has_no_effort(bridge):
    assert not {"reasoning", "reasoning_effort"} & set(properties((await found(bridge))["result"][0]))


async def test_models_in_openrouters_form(bridge, servicer):
    servicer.models = [
        pb.Model(name=MODEL, window=30, sequence_length=10, weights="Qwen/Qwen3-0.6B@abc", has_reasoning=True),
        pb.Model(name="@hf/other/second", window=40, sequence_length=20, weights="second.gguf"),
        pb.Model(name="@cf/baai/bge", context_length=512, weights="BAAI/bge", task=pb.TASK_TEXT_EMBEDDING),
    ]
    body = await found(bridge, "?format=openrouter")
    assert set(body) == {"data"}
    first, second, third = body["data"]
    assert isinstance(first.pop("created"), int)
    parameters = first.pop("supported_sampling_parameters")
    assert {"max_tokens", "temperature", "top_p", "seed", "stop"} <= set(parameters)
    assert first == {
        "id": MODEL,
        "name": "llama-2-7b-chat-int8",
        "hugging_face_id": "Qwen/Qwen3-0.6B",
        "context_length": 30,
        "max_output_length": 10,
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "pricing": {"prompt": "0", "completion": "0", "input_cache_read": "0"},
        "default_parameters": {},
        "supported_features": ["tools", "json_mode", "structured_outputs", "logprobs", "reasoning"],
    }
    assert second["hugging_face_id"] is None and "reasoning" not in second["supported_features"]
    assert (third["output_modalities"], third["context_length"]) == (["embeddings"], 512)


async def test_openrouters_form_has_pages_and_filters(bridge):
    pages = [await found(bridge, f"?format=openrouter&page={page}&per_page=1") for page in (1, 2, 3)]
    assert [[model["id"] for model in page["data"]] for page in pages] == [[MODEL], ["@hf/other/second"], []]
    assert len((await found(bridge, "?format=openrouter&search=llama"))["data"]) == 1


async def test_another_format_is_refused(bridge):
    response = await bridge.client.get(f"{AI}/models/search?format=marketplace")
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5006)


async def test_a_worker_reads_the_models_from_the_result(bridge):
    for query in ("", "?format=openrouter"):
        body = (await bridge.client.get(f"/ai-api/models/search{query}")).json()
        assert len(body["result"]) == 2 and body["success"]
    assert body["data"] == body["result"]


async def test_there_is_one_task(bridge):
    tasks = (await bridge.client.get(f"{AI}/tasks/search")).json()["result"]
    assert [task["name"] for task in tasks] == ["Text Generation"]
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


async def test_sampling_defaults_are_in_the_schema_and_in_every_list(bridge, servicer):
    defaults = pb.Sampling(temperature=0.7, top_k=20, repetition_penalty=1.1, max_tokens=40)
    servicer.models = [pb.Model(name=MODEL, window=30, sampling_defaults=defaults), pb.Model(name="@cf/a/b", window=30)]
    expected = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    schema = (await bridge.client.get(f"{AI}/models/schema", params={"model": MODEL})).json()["result"]["input"]
    for form in schema["anyOf"]:
        fields = form["properties"]
        assert {name: field["default"] for name, field in fields.items() if name in expected} == expected
        assert "default" not in fields["top_p"] and "default" not in fields["min_p"]
    other = (await bridge.client.get(f"{AI}/models/schema", params={"model": "@cf/a/b"})).json()["result"]["input"]
    assert other["anyOf"][0]["properties"]["temperature"]["default"] == 0.6
    entry, plain = (await found(bridge))["result"]
    assert properties(entry)["default_parameters"] == expected and "default_parameters" not in properties(plain)
    entry = (await bridge.client.get(f"{AI}/models/search", params={"format": "openrouter"})).json()["data"][0]
    assert entry["default_parameters"] == expected
    listed = (await bridge.client.get("/v1/models")).json()["data"]
    assert listed[0]["default_parameters"] == expected and "default_parameters" not in listed[1]


async def test_a_response_object_has_the_models_sampling_defaults(bridge, servicer):
    servicer.models = [pb.Model(name=MODEL, window=30, sampling_defaults=pb.Sampling(temperature=0.7, top_p=0.95))]
    await bridge.client.get("/v1/models")
    body = {"model": MODEL, "input": "hi"}
    while (reply := (await bridge.ask(body, url="/v1/responses")).json())["temperature"] != 0.7:
        await asyncio.sleep(0.05)  # until the bridge's next poll of the servers
    assert reply["top_p"] == 0.95
    assert (await bridge.ask({**body, "top_p": 0.5}, url="/v1/responses")).json()["top_p"] == 0.5
