"""LangChain, pydantic-ai, instructor, LiteLLM and httpx-sse, unmodified but for address and token.

tests/clients/python/requirements.txt names the versions. The bridge sends comments, which every client must skip.
"""

import pytest

from tests.clients import python_programs
from tests.clients.conftest import ACCOUNT

pytestmark = [pytest.mark.clients, pytest.mark.timeout(500)]

MODEL = "@cf/meta/llama-2-7b-chat-int8"
CALL = ["get_weather", ["city"]]


@pytest.fixture(scope="module")
def python():
    return python_programs.installed()


@pytest.fixture
def run(python):
    return lambda program, url: python_programs.run(python, program, url, MODEL)


def test_langchain_runs_over_openais_api(run, commenting_bridge):
    found = run("langchain_openai_client.py", f"{commenting_bridge}/v1")
    assert "Tokyo" in found["whole"] and "Tokyo" in found["text"]
    assert found["finish"] == "stop" and found["usage"]["output_tokens"] > 0
    assert [usage["output_tokens"] for usage in found["stream_usage"]] == [8]
    assert found["calls"] == [CALL, CALL] and found["answer"]
    assert all(found["structured"].values())


@pytest.mark.parametrize("api", ["workers_ai", "openai_compatible"])
def test_langchain_runs_over_cloudflares_api(python, commenting_bridge, api):
    url = f"{commenting_bridge}/client/v4"
    found = python_programs.run(python, "langchain_cloudflare_client.py", url, MODEL, ACCOUNT, api)
    assert "Tokyo" in found["whole"] and found["text"] == found["whole"]
    assert found["usage"]["output_tokens"] > 0 and found["answer"]
    # In streams of OpenAI's form, the package reads no tool calls.
    assert found["calls"] == ([CALL, CALL] if api == "workers_ai" else [CALL])


def test_pydantic_ai_streams_fills_models_and_calls_tools(run, commenting_bridge):
    found = run("pydantic_ai_client.py", f"{commenting_bridge}/v1")
    assert "Tokyo" in found["whole"] and found["text"] == found["whole"] and found["tokens"] > 0
    assert len(found["structured"]) == 3 and all(found["structured"]) and found["answer"]


def test_instructor_fills_models_in_both_modes(run, commenting_bridge):
    found = run("instructor_client.py", f"{commenting_bridge}/v1")
    assert set(found) == {"TOOLS", "JSON_SCHEMA"}
    assert all(whole and whole == partial for whole, partial in found.values())


def test_litellm_runs_with_both_providers(run, commenting_bridge):
    found = run("litellm_client.py", commenting_bridge)
    for provider in ("openai", "cloudflare"):
        assert "Tokyo" in found[provider]["whole"] and found[provider]["text"] == found[provider]["whole"]
        assert found[provider]["usage"] > 0
    assert found["call"] == CALL


def test_httpx_sse_skips_comments(run, commenting_bridge):
    found = run("httpx_sse_client.py", f"{commenting_bridge}/client/v4/accounts/{ACCOUNT}/ai/run")
    assert "Tokyo" in found["text"] and found["comments"] > 3
