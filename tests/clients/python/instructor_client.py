"""instructor, unmodified but for address and token: prints what came back as one line of JSON."""

import json
import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

base_url, model = sys.argv[1:]
openai = OpenAI(base_url=base_url, api_key="any-token", max_retries=0)
MESSAGES = [{"role": "user", "content": "What is the capital of Japan?"}]


class Place(BaseModel):
    """A place."""

    city: str = Field(max_length=20)


found = {}
for mode in ("TOOLS", "JSON_SCHEMA"):
    client = instructor.from_openai(openai, mode=instructor.Mode[mode])
    fields = {"model": model, "messages": MESSAGES, "response_model": Place, "max_retries": 0}
    whole = client.create(**fields, temperature=0, max_tokens=60)
    *_, partial = client.create_partial(**fields, temperature=0, max_tokens=60)
    found[mode] = [whole.city, partial.city]
print(json.dumps(found))
