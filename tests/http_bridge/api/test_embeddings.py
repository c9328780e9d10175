"""Embeddings: Workers AI's forms over REST and through the binding, and OpenAI's form."""

import asyncio
import base64
import gzip
import json
import struct

import grpc
import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import MODEL, RUN_URL
from tests.support.observability.collector import collecting

BGE, M3, QWEN = "@cf/baai/bge-small-en-v1.5", "@cf/baai/bge-m3", "@cf/qwen/qwen3-embedding-0.6b"
AI = "/client/v4/accounts/acc/ai"
# What the scripted server answers: the text's length, and 0.1 in float32.
TENTH = 0.100000001


@pytest.fixture(autouse=True)
def models(servicer):
    task = {"task": pb.TASK_TEXT_EMBEDDING, "dimensions": 2, "context_length": 512}
    servicer.models += [pb.Model(name=name, **task) for name in (BGE, M3, QWEN)]


async def run(bridge, body, model=BGE, **options):
    return await bridge.ask(body, url=f"{AI}/run/{model}", **options)


@pytest.mark.parametrize(
    ("text", "data"),
    [("hello", [[5, TENTH]]), (["a", "bcd"], [[1, TENTH], [3, TENTH]]), (["x"] * 100, [[1, TENTH]] * 100)],
)
async def test_texts_become_vectors_with_their_shape(bridge, servicer, text, data):
    response = await run(bridge, {"text": text})
    result = {"shape": [len(data), 2], "data": data}
    assert response.json() == {"result": result, "success": True, "errors": [], "messages": []}
    assert response.headers["content-type"] == "application/json"
    assert servicer.embed_requests[0].account == "acc"
    assert response.headers["cf-ai-req-id"] == servicer.request_ids[0]


async def test_the_model_may_be_in_the_body(bridge, servicer):
    response = await bridge.ask({"model": BGE, "input": {"text": "ab"}}, url=f"{AI}/run")
    assert response.json()["result"]["data"] == [[2, TENTH]]
    assert servicer.embed_requests[0].model == BGE


@pytest.mark.parametrize("pooling", ["mean", "cls"])
async def test_the_reply_names_the_pooling_of_the_request(bridge, servicer, pooling):
    result = (await run(bridge, {"text": "a", "pooling": pooling})).json()["result"]
    assert result["pooling"] == pooling
    assert pb.Pooling.Name(servicer.embed_requests[0].pooling) == f"POOLING_{pooling.upper()}"


@pytest.mark.parametrize("profile", ["2023-11", "2026"])
async def test_profiles_of_workers_ai_use_the_mean_for_english_bge(bridge, servicer, profile):
    headers = {"tailrace-profile": profile}
    assert (await run(bridge, {"text": "a"}, headers=headers)).json()["result"]["pooling"] == "mean"
    assert "pooling" not in (await run(bridge, {"text": "a"}, M3, headers=headers)).json()["result"]
    assert [request.pooling for request in servicer.embed_requests] == [pb.POOLING_MEAN, pb.POOLING_UNSPECIFIED]


async def test_contexts_without_a_query_become_vectors(bridge):
    body = {"contexts": [{"text": "a"}, {"text": "bc"}]}
    result = (await run(bridge, body, M3)).json()["result"]
    assert result == {"response": [[1, TENTH], [2, TENTH]], "shape": [2, 2]}


async def test_a_query_scores_each_context(bridge, servicer):
    body = {"query": "abcd", "contexts": [{"text": "abcd"}, {"text": "a"}]}
    first, second = (await run(bridge, body, M3)).json()["result"]["response"]
    assert (first["id"], second["id"]) == (0, 1)
    assert first["score"] == pytest.approx(1) and 0.9 < second["score"] < 0.999
    assert list(servicer.embed_requests[0].texts) == ["abcd", "abcd", "a"]


@pytest.mark.parametrize(
    ("model", "given", "refuses"),
    [(BGE, {}, False), (M3, {}, True), (M3, {"truncate_inputs": True}, False), (BGE, {"truncate_inputs": False}, True)],
)
async def test_long_texts_are_cut_or_refused_as_the_model_does(bridge, servicer, model, given, refuses):
    await run(bridge, {"text": "a", **given}, model)
    assert servicer.embed_requests[0].refuse_long_texts is refuses


async def test_qwen_has_queries_with_an_instruction_and_documents(bridge, servicer):
    await run(bridge, {"queries": ["q1", "q2"], "documents": "d", "instruction": "Find it"}, QWEN)
    assert list(servicer.embed_requests[0].texts) == ["Instruct: Find it\nQuery:q1", "Instruct: Find it\nQuery:q2", "d"]
    await run(bridge, {"queries": "q"}, QWEN)
    assert (
        servicer.embed_requests[1].texts[0].startswith("Instruct: Given a web search query, retrieve relevant passages")
    )
    await run(bridge, {"text": ["t"]}, QWEN)
    assert list(servicer.embed_requests[2].texts) == ["t"]


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        (BGE, {}, "required properties at '/' are 'text'"),
        (BGE, {"prompt": "hi"}, "required properties at '/' are 'text'"),
        (BGE, {"text": ["a"] * 101}, "'/text' must hold at most 100 items"),
        (BGE, {"text": []}, "'/text' must hold at least 1 items"),
        (BGE, {"text": ""}, "'/text' must not be empty"),
        (BGE, {"text": ["a", ""]}, "'/text/1' must not be empty"),
        (BGE, {"text": 5}, "Type mismatch of '/text', 'integer' not in 'string' or 'array'"),
        (BGE, {"text": "a", "pooling": "max"}, "at '/pooling'"),
        (M3, {"contexts": [{"txt": "a"}]}, "required properties at '/contexts/0' are 'text'"),
        (QWEN, {"queries": ["q"] * 33}, "'/queries' must hold at most 32 items"),
        (QWEN, {"instruction": "x"}, "one of 'queries', 'documents', 'text'"),
    ],
)
async def test_a_wrong_body_is_named(backend, start_bridge, servicer, model, body, sentence):
    await backend.set_serving(True)
    bridge = await start_bridge()
    async with asyncio.timeout(5):  # before the bridge has the list of models, it takes the body for another task's
        while sentence not in (await run(bridge, body, model)).text:
            await asyncio.sleep(0.01)
    servicer.embed_requests.clear()
    servicer.requests.clear()
    response = await run(bridge, body, model)
    (error,) = response.json()["errors"]
    assert (response.status_code, error["code"]) == (400, 5006)
    assert sentence in error["message"]
    assert not servicer.embed_requests and not servicer.requests


async def test_a_model_of_the_other_task_is_refused(bridge, servicer):
    async def wrong_task(reply):
        await reply.refuse(grpc.StatusCode.INVALID_ARGUMENT, "WRONG_TASK")

    servicer.embed = servicer.script = wrong_task
    response = await bridge.ask({"model": MODEL, "input": "a"}, url="/v1/embeddings")
    assert response.status_code in (400, 404) and MODEL in response.json()["error"]["message"]
    response = await bridge.ask(
        {"model": BGE, "messages": [{"role": "user", "content": "a"}]}, url="/v1/chat/completions"
    )
    assert response.status_code in (400, 404) and BGE in response.json()["error"]["message"]


async def test_text_generation_is_not_affected(bridge, servicer):
    assert (await bridge.ask({"prompt": "hi", "text": "ignored"}, url=RUN_URL)).json()["result"]["response"]
    assert not servicer.embed_requests


@pytest.mark.parametrize("path", ["/run?version=3", "/ai-gateway/run?version=3"])
async def test_the_binding_gets_a_bare_object(bridge, path):
    body = {"inputs": {"text": ["a", "bc"]}, "options": {}}
    response = await bridge.ask(body, url=path, headers={"cf-consn-model-id": BGE})
    assert response.json() == {"shape": [2, 2], "data": [[1, TENTH], [2, TENTH]]}


async def test_the_binding_of_sdk_1_1_0_gets_gzip(bridge):
    response = await bridge.ask({"inputs": {"text": "a"}}, url="/run?version=2", headers={"cf-consn-model-id": BGE})
    assert json.loads(gzip.decompress(response.content))["data"] == [[1, TENTH]]


async def test_the_sdk_of_2023_gets_a_tensor(bridge):
    tensor = {"name": "input_text", "type": "str", "shape": [2], "value": ["a", "bcd"]}
    content = gzip.compress(json.dumps({"input": [tensor], "stream": False}).encode())
    response = await bridge.client.post("/run", content=content, headers={"cf-consn-model-id": BGE})
    value = [[1, TENTH], [3, TENTH]]
    assert response.json() == {"result": [{"name": "embeddings", "type": "float32", "shape": [2, 2], "value": value}]}


async def test_errors_of_the_binding_are_flat(bridge):
    response = await bridge.ask({"inputs": {"text": []}}, url="/run?version=3", headers={"cf-consn-model-id": BGE})
    assert (response.status_code, response.json()["internalCode"], response.json()["name"]) == (400, 5006, "AiError")


@pytest.mark.parametrize("base", [f"{AI}/v1", "/v1"])
@pytest.mark.parametrize(("given", "lengths"), [("hello", [5]), (["a", "bc"], [1, 2])])
async def test_openai_clients_get_their_form(bridge, base, given, lengths):
    response = await bridge.ask({"model": BGE, "input": given, "user": "me"}, url=f"{base}/embeddings")
    data = [{"object": "embedding", "index": index, "embedding": [n, TENTH]} for index, n in enumerate(lengths)]
    tokens = 3 * len(lengths)
    assert response.json() == {
        "object": "list",
        "data": data,
        "model": BGE,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def test_base64_holds_the_float32_numbers(bridge, servicer):
    body = {"model": BGE, "input": "abc", "encoding_format": "base64", "dimensions": 2}
    (entry,) = (await bridge.ask(body, url="/v1/embeddings")).json()["data"]
    assert struct.unpack("<2f", base64.b64decode(entry["embedding"])) == (
        3.0,
        struct.unpack("f", struct.pack("f", 0.1))[0],
    )
    assert servicer.embed_requests[0].dimensions == 2


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"input": [1, 2, 3]}, "token ids"),
        ({"input": [[1, 2], [3]]}, "token ids"),
        ({"input": ""}, "'/input' must not be empty"),
        ({"input": []}, "at least 1"),
        ({"input": ["a"] * 2049}, "at most 2048"),
        ({"input": None}, "'/input'"),
        ({"input": [True]}, "'/input/0'"),
        ({"encoding_format": "hex"}, "'/encoding_format'"),
        ({"dimensions": 0}, "'/dimensions' must be >= 1"),
    ],
)
async def test_openais_errors_name_the_field(bridge, servicer, changes, part):
    response = await bridge.ask({"model": BGE, "input": "a", **changes}, url="/v1/embeddings")
    assert response.status_code == 400 and not servicer.embed_requests
    error = response.json()["error"]
    assert part in error["message"] and error["param"].partition("[")[0] == next(iter(changes))


@pytest.mark.parametrize(
    ("code", "reason", "metadata", "status"),
    [
        (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", {}, (400, 404)),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "CAPACITY_EXCEEDED", {}, (429,)),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "PROMPT_TOO_LONG",
            {"prompt_tokens": "9", "context_length": "5"},
            (400, 413),
        ),
        (grpc.StatusCode.INTERNAL, "GENERATION_FAILED", {}, (500,)),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", {}, (408,)),
    ],
)
async def test_the_servers_errors_become_statuses(bridge, servicer, code, reason, metadata, status):
    async def refuse(reply):
        await reply.refuse(code, reason, **metadata)

    servicer.embed = refuse
    for response in (
        await run(bridge, {"text": "a"}),
        await bridge.ask({"model": BGE, "input": "a"}, url="/v1/embeddings"),
    ):
        assert response.status_code in status
        assert response.json()["errors"] and response.json()["success"] is False


async def test_an_unavailable_server_is_tried_again(bridge, servicer):
    replies = iter([grpc.StatusCode.UNAVAILABLE, None])

    async def second_time(reply):
        code = next(replies)
        if code is not None:
            await reply.refuse(code, "MODEL_NOT_READY")
        return pb.EmbedResponse(embeddings=[pb.Embedding(values=[1.0])])

    servicer.embed = second_time
    assert (await run(bridge, {"text": "a"})).json()["result"]["data"] == [[1]]
    assert len(servicer.embed_requests) == 2


async def test_a_client_that_leaves_cancels_the_call(bridge, servicer):
    async def forever(reply):
        await reply.forever()

    servicer.embed = forever
    sending = asyncio.create_task(run(bridge, {"text": "a"}))
    await asyncio.wait_for(servicer.entered.wait(), 5)
    sending.cancel()
    await asyncio.wait_for(servicer.cancelled.wait(), 5)


async def test_a_reply_of_a_hundred_long_vectors_is_whole(bridge, servicer):
    async def long_vectors(reply):
        return pb.EmbedResponse(embeddings=[pb.Embedding(values=[0.5] * 1024) for _ in reply.request.texts])

    servicer.embed = long_vectors
    result = (await run(bridge, {"text": ["a"] * 100})).json()["result"]
    assert result["shape"] == [100, 1024] and result["data"] == [[0.5] * 1024] * 100


async def test_the_call_is_a_span_and_continues_the_clients_trace(servicer, start_bridge, monkeypatch):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with collecting(monkeypatch) as collector:
        bridge = await start_bridge()
        await run(bridge, {"text": ["a", "b"]}, headers={"traceparent": parent})
        http, call = await collector.named("POST", "Embed")
    assert http.span.trace_id.hex() == call.span.trace_id.hex() == parent[3:35]
    assert call.attributes["gen_ai.operation.name"] == "embeddings" and call.attributes["tailrace.num_texts"] == 2
    assert call.attributes["rpc.response.status_code"] == "OK"


async def test_models_and_schemas_tell_the_task(bridge):
    found = (await bridge.client.get(f"{AI}/models/search", params={"task": "Text Embeddings"})).json()["result"]
    assert [model["name"] for model in found] == [BGE, M3, QWEN]
    assert found[0]["task"]["id"] == "0137cdcf-162a-4108-94f2-1ca59e8c65ee"
    properties = {item["property_id"]: item["value"] for item in found[0]["properties"]}
    assert (properties["max_input_tokens"], properties["output_dimensions"]) == ("512", "2")
    others = (await bridge.client.get(f"{AI}/models/search", params={"task": "Text Generation"})).json()["result"]
    assert BGE not in [model["name"] for model in others]
    schema = (await bridge.client.get(f"{AI}/models/schema", params={"model": BGE})).json()["result"]
    assert schema["input"]["anyOf"][0]["properties"]["text"]["maxItems"] == 100
    assert "data" in schema["output"]["oneOf"][0]["properties"]
