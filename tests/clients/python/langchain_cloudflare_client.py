"""LangChain's ChatCloudflareWorkersAI, unmodified but for address and token: prints what came back as one line of JSON."""

import json
import sys

from langchain_cloudflare import ChatCloudflareWorkersAI
from langchain_core.tools import tool

# The last argument selects the model's own route (workers_ai) or OpenAI's (openai_compatible).
base_url, model, account, api = sys.argv[1:]
QUESTION = "What is the capital of Japan?"
chat = ChatCloudflareWorkersAI(
    model=model,
    account_id=account,
    api_token="any-token",
    base_url=base_url,
    temperature=0,
    max_tokens=12,
    max_retries=0,
    endpoint_format=api,
)


@tool
def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


whole = chat.invoke(QUESTION)
text = "".join(str(chunk.text) for chunk in chat.stream(QUESTION))
long = chat.model_copy(update={"max_tokens": 60})
call = long.bind_tools([get_weather], tool_choice="get_weather").invoke(QUESTION)
streamed = None
for chunk in long.bind_tools([get_weather], tool_choice="get_weather").stream(QUESTION):
    streamed = chunk if streamed is None else streamed + chunk
result = get_weather.invoke(call.tool_calls[0])
answer = chat.bind_tools([get_weather]).invoke([("system", "Be brief."), ("user", QUESTION), call, result])
print(
    json.dumps(
        {
            "whole": whole.content,
            "usage": whole.usage_metadata,
            "text": text,
            "calls": [[each["name"], list(each["args"])] for each in (*call.tool_calls, *streamed.tool_calls)],
            "answer": answer.content,
        }
    )
)
