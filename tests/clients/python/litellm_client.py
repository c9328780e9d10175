"""LiteLLM's OpenAI provider and its Cloudflare provider, unmodified but for address and token: prints one line of JSON."""

import json
import sys

import litellm

host, model = sys.argv[1:]
MESSAGES = [{"role": "user", "content": "What is the capital of Japan?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
PROVIDERS = {
    "openai": {"model": f"openai/{model}", "api_base": f"{host}/v1"},
    "cloudflare": {
        "model": f"cloudflare/{model}",
        "api_base": f"{host}/client/v4/accounts/0123456789abcdef0123456789abcdef/ai/v1",
    },
}
found = {}
for name, fields in PROVIDERS.items():
    fields = {
        **fields,
        "api_key": "any-token",
        "messages": MESSAGES,
        "max_tokens": 12,
        "temperature": 0,
        "num_retries": 0,
    }
    whole = litellm.completion(**fields)
    chunks = list(litellm.completion(**fields, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    found[name] = {"whole": whole.choices[0].message.content, "usage": whole.usage.completion_tokens, "text": text}
fields = {
    **PROVIDERS["openai"],
    "api_key": "any-token",
    "messages": MESSAGES,
    "tools": [TOOL],
    "tool_choice": "required",
}
call = litellm.completion(**fields, max_tokens=60, temperature=0).choices[0].message.tool_calls[0].function
found["call"] = [call.name, list(json.loads(call.arguments))]
print(json.dumps(found))
