"""The Responses API over the real stack with the default model, at both of its addresses."""

import json

import openai
import pytest
from agents import Agent, ModelSettings, OpenAIProvider, RunConfig, Runner, function_tool
from pydantic import BaseModel, Field

from tests.clients.conftest import ACCOUNT

pytestmark = pytest.mark.clients

MODEL = "@cf/meta/llama-2-7b-chat-int8"
QUESTION = "What is the capital of Japan?"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class City(BaseModel):
    city: str = Field(max_length=20)


@pytest.fixture(params=["account", "v1"])
def base_url(api, stack, request):
    return f"{api}/accounts/{ACCOUNT}/ai/v1" if request.param == "account" else f"http://{stack.http_address}/v1"


@pytest.fixture
def client(base_url):
    return openai.OpenAI(api_key="any-token", base_url=base_url, max_retries=0)


def test_a_text_is_the_same_in_a_stream(client):
    fields = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 12}
    response = client.responses.create(**fields)
    assert "Tokyo" in response.output_text and response.usage.output_tokens <= 12
    events = list(client.responses.create(**fields, stream=True))
    assert events[0].type == "response.created" and events[-1].response.output_text == response.output_text


def test_a_reply_that_is_cut_is_incomplete(client):
    response = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=2)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_forced_call_continues_after_its_result(client):
    first = client.responses.create(
        model=MODEL,
        input="Weather in Oslo?",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "get_weather"},
        parallel_tool_calls=False,
        max_output_tokens=80,
        temperature=0,
    )
    (call,) = first.output
    assert (call.name, list(json.loads(call.arguments))) == ("get_weather", ["city"])
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [{"role": "user", "content": "Weather in Oslo?"}, call, result]
    second = client.responses.create(model=MODEL, input=items, tools=[TOOL], max_output_tokens=12, temperature=0)
    assert second.output_text


def test_structured_output_is_parsed(client):
    response = client.responses.parse(
        model=MODEL, input=QUESTION, text_format=City, max_output_tokens=60, extra_body={"seed": 1}
    )
    assert response.output_parsed.city


def test_a_prompt_that_is_too_long_is_refused(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="word " * 5000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


async def test_an_agent_calls_a_tool_and_ends_with_structured_output(base_url):
    called = []

    # The small model would call the tool again and again.
    @function_tool(is_enabled=lambda context, agent: not called)
    def get_weather(city: str) -> str:
        """Return the weather of a city."""
        called.append(city)
        return f"sunny in {city}"

    async with openai.AsyncOpenAI(api_key="any-token", base_url=base_url, max_retries=0) as openai_client:
        config = RunConfig(
            model=MODEL, model_provider=OpenAIProvider(openai_client=openai_client), tracing_disabled=True
        )
        settings = ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=100, temperature=0)
        agent = Agent(
            name="Meteorologist",
            tools=[get_weather],
            output_type=City,
            model_settings=settings,
        )
        result = await Runner.run(agent, "Weather in Oslo?", run_config=config, max_turns=6)
    assert called and isinstance(result.final_output, City)
