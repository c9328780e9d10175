"""Profiles: the announcement's streams, the current ones, and the default."""

import json

import grpc
import pytest

RUN_URL = "/client/v4/accounts/acc/ai/run/@cf/meta/llama-2-7b-chat-int8"
STREAM = {"prompt": "where is new york?", "stream": True}


def profile(name):
    return {"tailrace-profile": name}


async def test_the_announcements_stream_has_exactly_its_bytes(bridge):
    response = await bridge.ask(STREAM, headers=profile("2023-11"))
    assert response.content.decode() == (
        'data: {"response":"New"}\n\ndata: {"response":" York"}\n\ndata: {"response":"\\n“é”"}\n\ndata: [DONE]\n\n'
    )


async def test_the_announcements_reply_contains_only_the_response(bridge):
    assert (await bridge.ask(headers=profile("2023-11"))).json()["result"] == {"response": "New York\n“é”"}


async def test_current_profile_pads_streams_and_counts_cached_tokens(bridge):
    events = (await bridge.ask(STREAM, headers=profile("2026"))).text.strip().split("\n\n")
    first, usage = (json.loads(events[place].removeprefix("data: ")) for place in (0, -2))
    assert 1 <= len(first["p"]) <= 50
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_current_profile_streams_256_tokens_that_must_fit_the_window(bridge, servicer):
    await bridge.ask(STREAM, headers=profile("2026"))
    assert (servicer.requests[0].sampling.max_tokens, servicer.requests[0].max_tokens_must_fit) == (256, True)


async def test_the_profile_is_a_setting(start_bridge, servicer):
    bridge = await start_bridge(profile="2023-11")
    assert "usage" not in (await bridge.ask()).json()["result"]
    assert "usage" in (await bridge.ask(headers=profile("default"))).json()["result"]


async def test_an_unknown_profile_is_refused(bridge, servicer):
    response = await bridge.ask(headers=profile("2024"))
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, 5006)
    assert "default, 2023-11, 2026" in response.json()["errors"][0]["message"]
    assert not servicer.requests


@pytest.mark.parametrize(
    ("reason", "metadata", "numbers"),
    [
        ("PROMPT_TOO_LONG", {"prompt_tokens": "2100", "context_length": "2048"}, ("2100", "2048")),
        ("NO_ROOM_FOR_REPLY", {"prompt_tokens": "2000", "max_tokens": "256", "window": "2048"}, ("2256", "2048")),
    ],
)
async def test_too_many_tokens_are_reported_in_cloudflares_wording(bridge, servicer, reason, metadata, numbers):
    async def refuse(reply):
        await reply.refuse(grpc.StatusCode.INVALID_ARGUMENT, reason, **metadata)

    servicer.script = refuse
    response = await bridge.ask()
    assert (response.status_code, response.json()["errors"][0]["code"]) == (413, 5021)
    assert (
        f"The estimated number of input and maximum output tokens ({numbers[0]}) exceeded this model context window "
        f"limit ({numbers[1]})."
    ) in response.json()["errors"][0]["message"]
