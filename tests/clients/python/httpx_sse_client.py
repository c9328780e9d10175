"""httpx-sse, unmodified: prints the text of a stream and the number of its comments as one line of JSON."""

import json
import sys

import httpx
from httpx_sse import connect_sse

base_url, model = sys.argv[1:]
body = {"prompt": "What is the capital of Japan?", "stream": True, "max_tokens": 12, "temperature": 0}
with httpx.Client(timeout=60) as client:
    with connect_sse(client, "POST", f"{base_url}/{model}", json=body) as source:
        events = [event.data for event in source.iter_sse()]
    raw = client.post(f"{base_url}/{model}", json=body).text
assert events.pop() == "[DONE]"
text = "".join(json.loads(event)["response"] for event in events)
print(json.dumps({"text": text, "comments": sum(line.startswith(":") for line in raw.splitlines())}))
