"""Answers questions with an OpenAI-compatible server: the code under test."""

import json
import os
import urllib.request


def capital(country: str) -> str:
    """Return the reply to a question about a country's capital, from the server at OPENAI_BASE_URL with OPENAI_API_KEY."""
    body = {
        "model": "@cf/meta/llama-2-7b-chat-int8",
        "messages": [{"role": "user", "content": f"What is the capital of {country}?"}],
        "temperature": 0,
        "max_tokens": 30,
    }
    request = urllib.request.Request(  # noqa: S310
        f"{os.environ['OPENAI_BASE_URL']}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return json.load(response)["choices"][0]["message"]["content"]
