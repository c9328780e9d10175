"""LangChain's ChatOpenAI, unmodified but for address and token: prints what came back as one line of JSON."""

import json
import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

base_url, model = sys.argv[1:]
chat = ChatOpenAI(
    base_url=base_url,
    api_key="any-token",
    model=model,
    temperature=0,
    max_tokens=12,
    max_retries=0,
    stream_usage=True,
)
QUESTION = "What is the capital of Japan?"


@tool
def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


class Place(BaseModel):
    """A place."""

    city: str = Field(max_length=20)


whole = chat.invoke([("system", "Be brief."), ("user", QUESTION)])
chunks = list(chat.stream(QUESTION))
forced = chat.bind_tools([get_weather], tool_choice="get_weather").bind(max_tokens=60)
call = forced.invoke(QUESTION)
streamed = None
for chunk in forced.stream(QUESTION):
    streamed = chunk if streamed is None else streamed + chunk
result = get_weather.invoke(call.tool_calls[0])
answer = chat.bind_tools([get_weather]).invoke([("user", QUESTION), call, result])
structured = {
    method: chat.with_structured_output(Place, method=method).bind(max_tokens=60).invoke(QUESTION).city
    for method in ("json_schema", "function_calling")
}
print(
    json.dumps(
        {
            "whole": whole.content,
            "usage": whole.usage_metadata,
            "finish": whole.response_metadata["finish_reason"],
            "text": "".join(chunk.text for chunk in chunks),
            "stream_usage": [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata],
            "calls": [[each["name"], list(each["args"])] for each in (*call.tool_calls, *streamed.tool_calls)],
            "answer": answer.content,
            "structured": structured,
        }
    )
)
