"""OpenAI's Agents SDK for Python: tools, structured output, streaming and thoughts."""

import openai
import pytest
from agents import Agent, ModelSettings, OpenAIProvider, RunConfig, Runner, function_tool
from openai.types.shared import Reasoning
from pydantic import BaseModel

from tests.clients.responses.conftest import ANSWER, THOUGHTS
from tests.http_bridge.conftest import MODEL

pytestmark = pytest.mark.clients

QUESTION = "How is the weather in Oslo?"


class Weather(BaseModel):
    city: str
    degrees: int


@function_tool
def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


@pytest.fixture
async def config(url):
    async with openai.AsyncOpenAI(api_key="any-token", base_url=url, max_retries=0) as client:
        yield RunConfig(model=MODEL, model_provider=OpenAIProvider(openai_client=client), tracing_disabled=True)


async def test_an_agent_calls_a_tool_and_answers(config, weather):
    agent = Agent(name="Meteorologist", instructions="Be brief", tools=[get_weather])
    result = await Runner.run(agent, QUESTION, run_config=config)
    assert result.final_output == ANSWER
    turns = weather.requests[1].chat.turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool"]
    assert (turns[2].reasoning, turns[3].content) == (THOUGHTS, "sunny in Oslo")


async def test_a_streamed_agent_emits_each_item(config):
    agent = Agent(name="Meteorologist", tools=[get_weather])
    result = Runner.run_streamed(agent, QUESTION, run_config=config)
    kinds = [event.item.type async for event in result.stream_events() if event.type == "run_item_stream_event"]
    assert result.final_output == ANSWER
    assert kinds == [
        "reasoning_item",
        "tool_call_item",
        "tool_call_output_item",
        "reasoning_item",
        "message_output_item",
    ]


async def test_a_tool_is_called_before_structured_output(config, weather):
    agent = Agent(name="Meteorologist", tools=[get_weather], output_type=Weather)
    result = await Runner.run(agent, QUESTION, run_config=config)
    assert result.final_output == Weather(city="Oslo", degrees=21)
    assert all(request.HasField("response_format") and request.chat.tools for request in weather.requests)


async def test_settings_of_the_model_reach_the_server(config, weather):
    settings = ModelSettings(
        temperature=0.25,
        max_tokens=50,
        tool_choice="required",
        parallel_tool_calls=False,
        reasoning=Reasoning(effort="low", summary="auto"),
        response_include=["reasoning.encrypted_content"],
        store=False,
    )
    agent = Agent(name="Meteorologist", tools=[get_weather], model_settings=settings)
    result = await Runner.run(agent, QUESTION, run_config=config)
    request = weather.requests[0]
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.25, 50)
    assert (request.chat.reasoning_effort, request.chat.parallel_tool_calls) == ("low", False)
    assert result.raw_responses[0].output[0].summary[0].text == THOUGHTS
