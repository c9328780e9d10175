"""Vercel's AI SDK with the OpenAI provider, whose default model speaks the Responses API."""

import json

import pytest

from tests.clients.responses.conftest import ANSWER, DOCUMENT, THOUGHTS
from tests.http_bridge.conftest import MODEL

pytestmark = pytest.mark.clients


async def test_text_tools_objects_and_thoughts(run_node, url, weather):
    found = await run_node("ai_sdk.mjs", url, MODEL)
    assert found["generated"] == found["text"] == ANSWER and found["reason"] == "stop"
    assert found["agent"] == found["agentText"] == ANSWER and found["results"] == ["sunny in Oslo"]
    assert found["object"] == found["objectStream"] == json.loads(DOCUMENT)
    assert found["referring"] == ANSWER
    assert found["reasoning"] == THOUGHTS and found["next"] == ANSWER
    # The thoughts came back with the conversation.
    assert weather.requests[-1].chat.turns[1].reasoning == THOUGHTS
