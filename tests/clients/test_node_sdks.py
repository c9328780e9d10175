"""Cloudflare's and OpenAI's Node SDKs, Vercel's AI SDK and EventSource, unmodified but for address and token."""

import json
import subprocess

import pytest

from tests.clients.conftest import ACCOUNT
from tests.clients.node_programs import environment

pytestmark = pytest.mark.clients

MODEL = "@cf/meta/llama-2-7b-chat-int8"


def run(programs, *arguments):
    done = subprocess.run(
        ["node", *arguments], cwd=programs, env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_cloudflares_typescript_sdk_runs_streams_and_lists(programs, api):
    found = run(programs, "cloudflare.mjs", api, ACCOUNT, MODEL)
    assert "Tokyo" in found["whole"] and found["text"] == found["whole"] and found["isDone"]
    assert found["refused"] == {"status": 400, "code": 5007}
    assert MODEL in found["models"] and found["token"] == "active"


@pytest.mark.parametrize("base", ["account", "v1"])
def test_openais_node_sdk_chats_streams_and_lists(programs, api, stack, base):
    url = f"{api}/accounts/{ACCOUNT}/ai/v1" if base == "account" else f"http://{stack.http_address}/v1"
    found = run(programs, "openai.mjs", url, MODEL)
    assert "Tokyo" in found["whole"] and found["text"] == found["whole"]
    assert found["usage"]["completion_tokens"] > 0
    assert found["refused"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert MODEL in found["models"]


def test_vercels_ai_sdk_runs_with_cloudflares_provider(programs, commenting_bridge):
    found = run(programs, "workers-ai-provider.mjs", f"{commenting_bridge}/client/v4", ACCOUNT, MODEL)
    assert "Tokyo" in found["whole"] and found["text"] == found["whole"]
    assert found["tokens"] == found["streamTokens"] > 0
    assert found["object"] == found["partial"] and set(found["object"]) == {"city"}
    assert found["calls"] == [["getWeather", ["city"]]] * 2
    assert found["cities"] == 3 and len(found["steps"]) == 2


def test_parsers_of_event_streams_skip_comments(programs, commenting_bridge):
    found = run(programs, "event-streams.mjs", commenting_bridge, MODEL)
    assert "Tokyo" in found["openai"] and found["eventSource"] == found["openai"]
