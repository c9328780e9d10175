"""Requests of the Responses API, for the tests of this folder."""

import json

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import MODEL

URL = "/v1/responses"
ASKED = {"model": MODEL, "input": "hi"}
USER = {"role": "user", "content": "hi"}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
TIME = {"type": "function", "name": "time", "parameters": None}


EVENTS = TypeAdapter(ResponseStreamEvent)


def events_of(response, *, checks_types=True):
    """Return the payloads of a stream, each of a type of OpenAI's SDK and numbered from 0."""
    assert response.headers["content-type"] == "text/event-stream"
    events = []
    for number, text in enumerate(response.text.strip().split("\n\n")):
        name, data = text.split("\n")
        payload = json.loads(data.removeprefix("data: "))
        assert name == f"event: {payload['type']}" and payload["sequence_number"] == number
        if checks_types:
            EVENTS.validate_python(payload)
        events.append(payload)
    return events


def types_of(events):
    return [event["type"].removeprefix("response.") for event in events]


def replying(*deltas, reason=pb.FINISH_REASON_STOP):
    """Return a script of a reply with these deltas."""

    async def script(reply):
        await reply.accept()
        await reply.start()
        for delta in deltas:
            await reply.context.write(pb.RunResponse(delta=delta))
        usage = pb.Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=2, reasoning_tokens=3)
        await reply.context.write(pb.RunResponse(completed=pb.Completed(finish_reason=reason, usage=usage)))

    return script


@pytest.fixture
def chat_of(bridge, servicer):
    """Return a function that sends fields and returns the conversation that the server gets."""

    async def send(**fields):
        response = await bridge.ask({**ASKED, **fields}, url=URL)
        assert response.status_code == 200, response.text
        return servicer.requests[-1].chat

    return send


@pytest.fixture
def refusal_of(bridge, servicer):
    """Return a function that sends fields and returns the error object."""

    async def send(**fields):
        response = await bridge.ask({**ASKED, **fields}, url=URL)
        assert response.status_code == 400, response.text
        assert not servicer.requests
        return response.json()["error"]

    return send
