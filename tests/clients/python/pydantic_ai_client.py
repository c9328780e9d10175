"""pydantic-ai, unmodified but for address and token: prints what came back as one line of JSON."""

import asyncio
import json
import sys

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelSettings, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

base_url, name = sys.argv[1:]
model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=base_url, api_key="any-token"))
QUESTION = "What is the capital of Japan?"
SHORT, LONG = (ModelSettings(temperature=0, max_tokens=number) for number in (12, 80))


class Place(BaseModel):
    """A place."""

    city: str = Field(max_length=20)


async def main() -> None:
    """Run agents with plain text, both kinds of structured output, and a tool."""
    plain = Agent(model, model_settings=SHORT, instructions="Be brief.")
    whole = await plain.run(QUESTION)
    async with plain.run_stream(QUESTION) as stream:
        text = "".join([piece async for piece in stream.stream_text(delta=True)])
    native = await Agent(model, model_settings=LONG, output_type=NativeOutput(Place)).run(QUESTION)
    forced = await Agent(model, model_settings=LONG, output_type=Place).run(QUESTION)
    async with Agent(model, model_settings=LONG, output_type=Place).run_stream(QUESTION) as stream:
        streamed = await stream.get_output()
    cities: list[str] = []
    agent = Agent(model, model_settings=ModelSettings(**LONG, seed=1), output_type=[str, Place])

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Return the weather of a city."""
        cities.append(city)
        return f"sunny in {city}"

    answer = await agent.run(f"{QUESTION} Or answer in a sentence.")
    found = {
        "whole": whole.output,
        "tokens": whole.usage.output_tokens,
        "text": text,
        "structured": [each.city for each in (native.output, forced.output, streamed)],
        "answer": str(answer.output),
        "cities": cities,
    }
    print(json.dumps(found))


asyncio.run(main())
