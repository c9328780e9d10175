"""Cloudflare's and OpenAI's Python SDKs and plain requests, unmodified but for address and token."""

import json

import cloudflare
import openai
import pytest
import requests

from tests.clients.conftest import ACCOUNT

pytestmark = pytest.mark.clients

MODEL = "@cf/meta/llama-2-7b-chat-int8"
PROMPT = "What is the capital of Japan?"
ASKED = [{"role": "user", "content": PROMPT}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(api):
    return cloudflare.Cloudflare(api_token="any-token", base_url=api, max_retries=0)


@pytest.fixture(params=["account", "v1"])
def oai(api, stack, request):
    base = f"{api}/accounts/{ACCOUNT}/ai/v1" if request.param == "account" else f"http://{stack.http_address}/v1"
    return openai.OpenAI(api_key="any-token", base_url=base, max_retries=0)


def test_cloudflare_runs_a_prompt(client):
    result = client.ai.run(MODEL, account_id=ACCOUNT, prompt=PROMPT, max_tokens=12, temperature=0)
    assert "Tokyo" in result["response"] and result["usage"]["completion_tokens"] <= 12


def test_cloudflare_streams(client):
    with client.ai.with_streaming_response.run(
        MODEL, account_id=ACCOUNT, messages=ASKED, stream=True, max_tokens=12, temperature=0
    ) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    assert "Tokyo" in "".join(json.loads(event)["response"] for event in events[:-1])


def test_cloudflare_gets_errors_with_their_codes(client):
    with pytest.raises(cloudflare.BadRequestError) as caught:
        client.ai.run("@cf/x/y", account_id=ACCOUNT, prompt=PROMPT)
    assert caught.value.errors[0].code == 5007
    with pytest.raises(cloudflare.APIStatusError) as too_long:
        client.ai.run(MODEL, account_id=ACCOUNT, prompt="word " * 3000)
    assert (too_long.value.status_code, too_long.value.errors[0].code) == (413, 5021)


def test_cloudflare_pages_through_the_models_and_stops(client):
    names = [model["name"] for model in client.ai.models.list(account_id=ACCOUNT)]
    assert MODEL in names and len(names) == len(set(names))


def test_cloudflare_reads_a_models_schema(client):
    schema = client.ai.models.schema.get(account_id=ACCOUNT, model=MODEL)
    assert "messages" in schema.model_dump_json()


def test_cloudflare_verifies_the_token(client):
    assert client.user.tokens.verify().status == "active"


def test_openai_chats(oai):
    reply = oai.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=12, temperature=0)
    assert "Tokyo" in reply.choices[0].message.content
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_openai_streams_with_usage(oai):
    options = {"include_usage": True}
    stream = oai.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=12, temperature=0, stream=True, stream_options=options
    )
    chunks = list(stream)
    assert "Tokyo" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0


def test_openai_completes_a_text(oai):
    reply = oai.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=4, temperature=0, logprobs=2)
    assert "four" in reply.choices[0].text
    assert len(reply.choices[0].logprobs.tokens) == 4


def test_openai_gets_log_probabilities(oai):
    reply = oai.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=3, logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert len(content) == 3 and all(item.logprob <= 0 and len(item.top_logprobs) == 2 for item in content)


@pytest.mark.parametrize("stream", [False, True])
def test_openai_gets_a_forced_tool_call(oai, stream):
    fields = {
        "model": MODEL,
        "messages": ASKED,
        "tools": [TOOL],
        "tool_choice": "required",
        "max_tokens": 80,
        "seed": 1,
    }
    if stream:
        chunks = list(oai.chat.completions.create(**fields, stream=True))
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = oai.chat.completions.create(**fields).choices[0]
        calls, reason = choice.message.tool_calls, choice.finish_reason
    assert reason == "tool_calls"
    # A choice of "required" allows several calls in one reply.
    assert {call.function.name for call in calls} == {"get_weather"}
    assert "city" in json.loads(calls[0].function.arguments)


def test_openai_continues_after_a_tool_has_answered(oai):
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Kyoto"}'},
    }
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"},
    ]
    reply = oai.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=8)
    assert reply.choices[0].finish_reason in ("stop", "length")


def test_openai_gets_structured_output(oai):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    given = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    reply = oai.chat.completions.create(model=MODEL, messages=ASKED, response_format=given, max_tokens=80, seed=1)
    assert set(json.loads(reply.choices[0].message.content)) == {"city"}


def test_openai_gets_its_own_exceptions(oai):
    with pytest.raises(openai.NotFoundError) as caught:
        oai.chat.completions.create(model="@cf/x/y", messages=ASKED)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model") and MODEL in caught.value.message
    with pytest.raises(openai.NotFoundError):
        oai.models.retrieve("@cf/x/y")
    with pytest.raises(openai.BadRequestError) as caught:
        oai.chat.completions.create(model=MODEL, messages=ASKED, temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        oai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 50_000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        oai.images.generate(model=MODEL, prompt="hi")


def test_openai_lists_models(oai):
    assert MODEL in [model.id for model in oai.models.list()]
    model = oai.models.retrieve(MODEL)
    assert (model.id, model.context_length >= model.max_output_tokens > 0) == (MODEL, True)


def test_openai_gets_several_choices_and_the_first_is_that_of_a_single_reply(oai):
    options = {"model": MODEL, "messages": ASKED, "max_tokens": 12, "seed": 5, "temperature": 1.0}
    reply = oai.chat.completions.create(**options, n=3)
    texts = [choice.message.content for choice in reply.choices]
    assert len(set(texts)) > 1
    assert texts[0] == oai.chat.completions.create(**options).choices[0].message.content
    streamed = [""] * 3
    for chunk in oai.chat.completions.create(**options, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_openai_without_max_tokens_gets_more_than_256_tokens(oai):
    numbers = "\n".join(str(number) for number in range(1, 20))
    reply = oai.completions.create(model=MODEL, prompt=numbers, temperature=0, frequency_penalty=0, stop="\n130")
    assert reply.usage.completion_tokens > 256


def test_openai_sends_its_unset_values_and_hosted_tools(oai):
    options = {"max_tokens": 5, "stop": [""], "n": 1, "extra_body": {"top_k": -1, "reasoning_effort": None}}
    tools = [{"type": "web_search"}, TOOL]
    raw = oai.chat.completions.with_raw_response.create(model=MODEL, messages=ASKED, tools=tools, **options)
    assert raw.headers["tailrace-skipped-tools"] == "web_search" and raw.parse().choices


def test_requests_as_in_the_documentation(api):
    url = f"{api}/accounts/{ACCOUNT}/ai/run/"
    headers = {"Authorization": "Bearer any-token"}
    response = requests.post(f"{url}{MODEL}", headers=headers, json={"messages": ASKED, "max_tokens": 8}, timeout=60)
    body = response.json()
    assert (body["success"], body["errors"]) == (True, []) and body["result"]["response"]


def test_requests_streams(api):
    url = f"{api}/accounts/{ACCOUNT}/ai/run/{MODEL}"
    with requests.post(
        url, json={"prompt": PROMPT, "stream": True, "max_tokens": 5}, stream=True, timeout=60
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == b"data: [DONE]" and len(lines) > 3
