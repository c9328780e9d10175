"""Embedding models in batches and in the steps of a gateway."""

import asyncio

import pytest

from tailrace.v1 import inference_pb2 as pb

BGE = "@cf/baai/bge-small-en-v1.5"
AI = "/client/v4/accounts/acc/ai"
# What the scripted server answers: the text's length, and 0.1 in float32.
TENTH = 0.100000001


@pytest.fixture(autouse=True)
def models(servicer):
    servicer.models.append(pb.Model(name=BGE, task=pb.TASK_TEXT_EMBEDDING, dimensions=2, context_length=512))


async def batch_results(ask):
    queued = await ask({"requests": [{"text": "ab", "external_reference": "x"}, {"text": 5}]})
    async with asyncio.timeout(5):
        while "status" in (answer := await ask({"request_id": queued["request_id"]})):
            await asyncio.sleep(0.005)
    return answer


async def test_a_batch_of_texts_over_rest(bridge, servicer):
    async def ask(body):
        response = await bridge.ask(body, url=f"{AI}/run/{BGE}?queueRequest=true")
        assert response.status_code == 200, response.text
        return response.json()["result"]

    answer = await batch_results(ask)
    first, second = answer["responses"]
    result = {"shape": [1, 2], "data": [[2, TENTH]]}
    assert first == {"id": 0, "result": result, "success": True, "external_reference": "x"}
    assert (second["success"], second["error"]["code"]) == (False, 5006)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("options", [{}, {"queueRequest": True}])
async def test_a_batch_of_texts_over_the_binding(bridge, options):
    async def ask(inputs):
        body = {"inputs": inputs, "options": options}
        response = await bridge.client.post("/run?version=3", json=body, headers={"cf-consn-model-id": BGE})
        assert response.status_code == 200, response.text
        return response.json()

    assert (await batch_results(ask))["responses"][0]["result"]["data"] == [[2, TENTH]]


async def test_a_step_of_a_gateway_may_embed(bridge):
    step = {"provider": "workers-ai", "endpoint": BGE, "headers": {}, "query": {"text": "ab"}}
    response = await bridge.client.post("/ai-gateway/universal/run/g", json=[step])
    assert response.json()["result"]["data"] == [[2, TENTH]]
    openai = {**step, "endpoint": "v1/embeddings", "query": {"model": BGE, "input": "ab"}}
    response = await bridge.client.post("/ai-gateway/universal/run/g", json=[openai])
    assert response.json()["data"][0]["embedding"] == [2, TENTH]
