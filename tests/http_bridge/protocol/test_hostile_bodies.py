"""Bodies that are made to cost time or memory: an error about them takes neither."""

import json
import resource
import sys
import time
import zlib

import pytest
from starlette.datastructures import Headers, QueryParams

from http_bridge.api.base import IncomingRequest
from http_bridge.api.responses.items import Conversation
from http_bridge.api.responses.tools import Toolbox, choose
from http_bridge.errors import ApiError
from http_bridge.protocol.validation.documents import load, zipped
from tests.http_bridge.conftest import BODIES

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
RESPONSE = {"model": "m", "input": "hi"}
# A slow machine takes a tenth of it; work that grows with the square of the body takes minutes.
SECONDS = 2.0


def peak_bytes() -> int:
    """Return the most memory that this process has had. Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def refusal(read, *arguments):
    begin = time.process_time()
    with pytest.raises(ApiError) as caught:
        read(*arguments)
    assert time.process_time() - begin < SECONDS
    assert caught.value.code == 5006
    return caught.value


@pytest.mark.parametrize("value", [1, "x"])
@pytest.mark.parametrize("key", ["k", ""])
def test_many_wrong_biases_are_one_short_error(key, value):
    biases = {f"{key}{number}": value for number in range(50_000)}
    error = refusal(BODIES.chat, {**CHAT, "logit_bias": biases})
    assert error.param == "logit_bias" and len(error.description) < 1000


def test_much_wrong_metadata_is_one_short_error():
    metadata = {f"k{number}": [] for number in range(50_000)}
    error = refusal(BODIES.responses, {**RESPONSE, "metadata": metadata})
    assert error.param == "metadata.k0" and len(error.description) < 1000


def test_a_wrong_field_is_found_behind_many_unknown_ones():
    unknown = {f"k{number}": [] for number in range(50_000)}
    assert refusal(BODIES.chat, {**unknown, **CHAT, "n": 9}).description == "Bad input: Error: '/n' must be <= 8"


def test_a_long_name_is_not_repeated_for_each_item_below_it():
    body = {"k" * 400_000: [0] * 100_000, "last": "\ud800"}
    error = refusal(load, json.dumps(body).encode(), 10**7)
    assert error.param == "last"


def test_many_types_of_tools_are_left_out_in_linear_time():
    toolbox, begin = Toolbox(), time.process_time()
    toolbox.add([{"type": f"t{number}"} for number in range(50_000)], "/tools")
    assert len(toolbox.left_out) == 50_000 and time.process_time() - begin < SECONDS


def test_many_allowed_tools_are_found_in_linear_time():
    tools = [{"type": "function", "name": f"f{number}"} for number in range(10_000)]
    toolbox, begin = Toolbox(), time.process_time()
    toolbox.add(tools, "/tools")
    allowed = choose({"type": "allowed_tools", "mode": "auto", "tools": tools}, toolbox).allowed_tools
    assert len(allowed) == 10_000 and time.process_time() - begin < SECONDS


def test_many_thoughts_take_the_memory_of_their_text():
    conversation = Conversation("m", Toolbox(), lambda item_id: None)
    item = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x" * 900}]}
    begin = peak_bytes()
    for _ in range(4096):
        conversation.add_item(item, "/input/0")
    (turn,) = conversation.turns
    assert len(turn.reasoning) == 4096 * 900 and peak_bytes() - begin < 200_000_000


@pytest.mark.parametrize(
    ("data", "headers", "is_large"),
    [
        (b'{"prompt": "hi"}', {}, False),
        (b' {"prompt": "hi"}', {}, False),
        (b'{"prompt": "' + b"x" * 100_000 + b'"}', {}, True),
        (zipped(b"{}"), {}, True),
        (zlib.compress(b"{}"), {}, True),
        (b"{ compressed without a header", {"content-encoding": "deflate"}, True),
    ],
)
def test_a_body_that_may_take_long_is_parsed_on_another_thread(data, headers, is_large):
    incoming = IncomingRequest(
        request_id="a",
        account="",
        is_at_account=False,
        model="m",
        headers=Headers(headers),
        query=QueryParams(""),
        data=data,
        max_bytes=1_000_000,
        has_padding=False,
        default_profile="default",
        bodies=BODIES,
        models=None,
    )
    assert incoming.is_large is is_large


def test_a_long_name_of_a_model_is_not_repeated_for_each_problem():
    pictures = [{"type": "image_url"}] * 8
    body = {"model": "m" * 1_000_000, "messages": [{"role": "user", "content": pictures}]}
    assert len(refusal(BODIES.chat, body).description) < 5000
