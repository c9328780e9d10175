"""The Worker binding in all its generations, directly and wrapped by miniflare and wrangler 3."""

import asyncio
import gzip
import json

import grpc
import pytest

MODEL = "@cf/meta/llama-2-7b-chat-int8"
HEADERS = {"cf-consn-model-id": MODEL}
NEWER = {"cf-consn-sdk-version": "1.0.53"}
MODERN = {"inputs": {"prompt": "hi"}, "options": {}}
PROXY_URL = "/client/v4/accounts/acc/ai/run/proxy"
FLAT = {"name", "internalCode", "httpCode", "message", "description", "requestId"}


def tensor(name, value, kind="str"):
    return {"name": name, "type": kind, "shape": [1], "value": [value]}


def zipped(document):
    return gzip.compress(json.dumps(document).encode())


async def run(bridge, body, *, url="/run?version=3", headers=HEADERS, **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await bridge.client.post(url, content=content, headers=headers, **options)


@pytest.mark.parametrize("url", ["/run?version=3", "/ai-gateway/run?version=3", "/run"])
async def test_the_runtime_gets_a_bare_object(bridge, servicer, url):
    response = await run(bridge, MODERN, url=url)
    assert response.headers["content-type"] == "application/json"
    assert response.json()["response"] == "New York\n“é”"
    assert response.headers["cf-ai-req-id"] == servicer.request_ids[0]
    assert servicer.requests[0].model == MODEL


async def test_the_runtime_gets_the_stream_of_the_rest_interface(bridge):
    response = await run(bridge, {"inputs": {"prompt": "hi", "stream": True}})
    assert response.headers["content-type"] == "text/event-stream"
    assert response.text.startswith('data: {"response":"New"}\n\n') and response.text.endswith("data: [DONE]\n\n")


async def test_sdk_1_1_0_gets_gzip_without_a_header(bridge):
    response = await run(
        bridge, MODERN, url="/run?version=2", headers={**HEADERS, "content-encoding": "application/json"}
    )
    assert "content-encoding" not in response.headers
    assert json.loads(gzip.decompress(response.content))["response"] == "New York\n“é”"


async def test_the_first_sdks_get_a_tensor_under_both_names(bridge, servicer):
    body = zipped({"input": [tensor("INPUT_0", "hi"), tensor("INPUT_1", 7, "uint32")]})
    response = await run(bridge, body, url="/run", headers={**HEADERS, "content-encoding": "gzip"})
    assert response.json() == {"result": [tensor(name, "New York\n“é”") for name in ("name", "generated_text")]}
    assert servicer.requests[0].sampling.max_tokens == 7


@pytest.mark.parametrize(
    ("version", "prompt", "is_raw"),
    [
        (None, "hi", False),
        ("1.0.²", "hi", True),
        ("1.0.35", "hi", False),
        ("1.0.35", "[INST]hi[/INST]", True),
        ("1.0.53", "hi", True),
    ],
)
async def test_a_prompt_without_the_sdks_template_is_a_users_turn(bridge, servicer, version, prompt, is_raw):
    headers = {**HEADERS, **({"cf-consn-sdk-version": version.encode("latin-1")} if version else {})}
    await run(bridge, zipped({"input": [tensor("INPUT_0", prompt)]}), url="/run", headers=headers)
    turns = [turn.content for turn in servicer.requests[0].chat.turns]
    assert (servicer.requests[0].text, turns) == ((prompt, []) if is_raw else ("", [prompt]))


async def test_the_sdks_other_family_gets_its_prompt_back_before_the_reply(bridge, servicer):
    tensors = [tensor("text_input", "hi"), tensor("sampling_parameters", '{"max_tokens": 7}')]
    response = await run(bridge, zipped({"input": tensors}), url="/run", headers={**HEADERS, **NEWER})
    assert response.json() == {"result": [tensor("name", "hiNew York\n“é”")]}
    assert (servicer.requests[0].text, servicer.requests[0].sampling.max_tokens) == ("hi", 7)


@pytest.mark.parametrize(("name", "before"), [("INPUT_0", []), ("text_input", [["hi"]])])
async def test_the_first_sdks_get_a_stream_of_tensors_without_done(bridge, name, before):
    body = zipped({"input": [tensor(name, "hi")], "stream": True})
    response = await run(bridge, body, url="/run")
    events = [json.loads(event.removeprefix("data: ")) for event in response.text.strip().split("\n\n")]
    assert [event["result"][0]["value"] for event in events] == [*before, ["New"], [" York"], ["\n“é”"]]


async def test_a_prefix_before_the_models_name_is_left_out(bridge, servicer):
    await run(bridge, MODERN, headers={"cf-consn-model-id": f"mine:{MODEL}"})
    assert servicer.requests[0].model == MODEL


async def test_the_binding_gets_flat_errors(bridge, servicer):
    async def unknown(reply):
        await reply.refuse(grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")

    servicer.script = unknown
    response = await run(bridge, MODERN, headers={"cf-consn-model-id": "@cf/x/y"})
    body = response.json()
    assert (response.status_code, set(body)) == (400, FLAT)
    assert (body["name"], body["internalCode"], body["description"]) == (
        "AiError",
        5007,
        "No such model @cf/x/y or task: the models here are @cf/meta/llama-2-7b-chat-int8, @hf/other/second",
    )


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (MODERN, {}, 3003),
        (b"", HEADERS, 3003),
        ({"inputs": {}}, HEADERS, 5006),
        ({}, HEADERS, 5006),
        ({"input": [{"name": "INPUT_0"}]}, HEADERS, 5006),
        ({"input": [tensor("INPUT_0", 5)]}, HEADERS, 5006),
        ({"input": []}, HEADERS, 5006),
        (b"\x1f\x8bnot gzip", HEADERS, 5006),
    ],
)
async def test_malformed_bodies_are_explained(bridge, servicer, body, headers, code):
    response = await run(bridge, body, headers=headers)
    assert (response.status_code, response.json()["internalCode"]) == (400, code)
    assert not servicer.requests


async def test_gzip_that_unpacks_to_too_much_is_refused(start_bridge, servicer):
    bridge = await start_bridge(max_body_bytes=1000)
    response = await run(bridge, gzip.compress(b" " * 2_000_000))
    assert (response.status_code, response.json()["internalCode"]) == (413, 3006)


async def test_miniflare_is_unwrapped(bridge, servicer):
    wrapped = {
        "mf-url": "https://workers-binding.ai/run?version=3",
        "mf-binding": "AI",
        "mf-header-cf-consn-model-id": MODEL,
    }
    assert (await run(bridge, MODERN, url="/", headers=wrapped)).json()["response"] == "New York\n“é”"


async def test_wrangler_3_is_unwrapped(bridge, servicer):
    headers = {**HEADERS, "x-forwarded": "https://workers-binding.ai/run?version=2"}
    response = await run(bridge, MODERN, url=PROXY_URL, headers=headers)
    assert json.loads(gzip.decompress(response.content))["response"] == "New York\n“é”"


async def test_a_proxied_request_of_old_wrangler_is_a_run(bridge):
    assert (await run(bridge, MODERN, url=PROXY_URL)).json()["response"] == "New York\n“é”"


@pytest.mark.parametrize("url", ["/run", "/", PROXY_URL])
async def test_the_binding_needs_a_token_where_the_rest_interface_does(start_bridge, servicer, url):
    bridge = await start_bridge(api_tokens=("secret",))
    wrapped = {**HEADERS, "mf-url": "https://workers-binding.ai/run", "mf-header-cf-consn-model-id": MODEL}
    assert (await run(bridge, MODERN, url=url, headers=wrapped)).status_code == 400
    assert not servicer.requests
    wrapped["authorization"] = "Bearer secret"
    assert (await run(bridge, MODERN, url=url, headers=wrapped)).status_code == 200


async def test_tags_are_in_the_log(bridge, caplog):
    caplog.set_level("INFO")
    await run(bridge, {**MODERN, "options": {"tags": ["one", "two"]}})
    async with asyncio.timeout(5):
        while not (lines := [record for record in caplog.records if record.name.endswith("request_log")]):
            await asyncio.sleep(0.005)
    assert lines[-1].args["tags"] == "one,two"


@pytest.mark.parametrize("tags", ["one", ["x"] * 6, ["x" * 51], [5]])
async def test_wrong_tags_are_refused(bridge, servicer, tags):
    response = await run(bridge, {**MODERN, "options": {"tags": tags}})
    assert (response.status_code, response.json()["internalCode"]) == (400, 5006)
    assert "/options/tags" in response.json()["description"] and not servicer.requests


@pytest.mark.parametrize("length", ["x", "²", "-1", "1" * 5000])
async def test_a_wrapped_content_length_is_no_internal_error(bridge, length):
    headers = {f"mf-header-{name}": value for name, value in HEADERS.items()}
    wrapped = {**headers, "mf-url": "http://workers-binding.ai/run?version=3", "mf-header-content-length": length}
    encoded = {name: value.encode("latin-1") for name, value in wrapped.items()}
    response = await bridge.client.post("/", json={"inputs": {"prompt": "hi"}}, headers=encoded)
    assert response.status_code == (413 if length.startswith("11") else 200)
