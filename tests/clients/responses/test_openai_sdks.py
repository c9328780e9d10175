"""OpenAI's SDKs for Python and Node with the Responses API, unmodified but for the address."""

import json

import openai
import pytest
from pydantic import BaseModel

from tests.clients.responses.conftest import ANSWER, DOCUMENT, THOUGHTS
from tests.http_bridge.conftest import MODEL

pytestmark = pytest.mark.clients

QUESTION = "How is the weather in Oslo?"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.fixture
async def client(url):
    async with openai.AsyncOpenAI(api_key="any-token", base_url=url, max_retries=0) as client:
        yield client


async def test_a_response_has_text_thoughts_and_usage(client):
    response = await client.responses.create(model=MODEL, input=QUESTION)
    assert (response.output_text, response.status) == (ANSWER, "completed")
    assert response.output[0].content[0].text == THOUGHTS
    assert response.usage.output_tokens_details.reasoning_tokens == 3


async def test_the_stream_is_put_together(client):
    async with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        response = await stream.get_final_response()
    assert text == response.output_text == ANSWER


async def test_a_document_is_parsed(client, weather):
    response = await client.responses.parse(model=MODEL, input=QUESTION, text_format=Weather)
    assert response.output_parsed == Weather(city="Oslo", degrees=21)
    assert json.loads(weather.requests[0].response_format.json_schema)["required"] == ["city", "degrees"]


async def test_a_tools_result_goes_back_with_the_output_of_the_first_response(client, weather):
    first = await client.responses.create(model=MODEL, input=QUESTION, tools=[TOOL])
    call = first.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [{"role": "user", "content": QUESTION}, *first.output, result]
    second = await client.responses.create(model=MODEL, input=items, tools=[TOOL])
    assert second.output_text == ANSWER
    reply, tool = weather.requests[1].chat.turns[1:]
    assert (reply.reasoning, reply.tool_calls[0].id, tool.tool_call_id) == (THOUGHTS, call.call_id, call.call_id)


async def test_errors_are_the_sdks_exceptions(client):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model=MODEL, input=QUESTION, store=True)
    assert refused.value.param == "store"
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_1")


async def test_the_node_sdk_reads_what_the_python_sdk_reads(run_node, url):
    found = await run_node("openai.mjs", url, MODEL)
    assert found["whole"] == found["text"] == found["final"] == ANSWER
    assert found["parsed"] == json.loads(DOCUMENT)
    assert found["call"] == {"name": "get_weather", "arguments": {"city": "Oslo"}} and found["after"] == ANSWER
    assert found["refused"] == {"name": "BadRequestError", "status": 400, "param": "previous_response_id"}
