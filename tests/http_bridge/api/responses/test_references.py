"""References to the items of earlier replies in the Responses API."""

import pytest

from http_bridge.api.responses.items import Conversation
from http_bridge.api.responses.recent import RecentItems
from http_bridge.api.responses.tools import Toolbox
from http_bridge.errors import ApiError
from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import MODEL

URL = "/v1/responses"
USER = {"role": "user", "content": "hi"}


async def replies_with_thoughts(reply):
    await reply.accept()
    await reply.start()
    for delta in (pb.Delta(reasoning="Hm"), pb.Delta(text="Yes.")):
        await reply.context.write(pb.RunResponse(delta=delta))
    await reply.complete()


async def reply_items(bridge, **fields):
    response = await bridge.ask({"model": MODEL, "input": "hi", **fields}, url=URL)
    return [{"type": "item_reference", "id": item["id"]} for item in response.json()["output"]]


async def refer(bridge, items, url=URL):
    body = {"model": MODEL, "input": [USER, *items, {"role": "user", "content": "Why?"}]}
    return await bridge.ask(body, url=url)


async def test_a_reference_to_a_recent_item_is_the_item(bridge, servicer):
    servicer.script = replies_with_thoughts
    assert (await refer(bridge, await reply_items(bridge))).status_code == 200
    reply = servicer.requests[1].chat.turns[1]
    assert (reply.role, reply.reasoning, reply.content) == ("assistant", "Hm", "Yes.")


async def test_a_streamed_item_can_be_referred_to(bridge, servicer):
    response = await bridge.ask({"model": MODEL, "input": "hi", "stream": True}, url=URL)
    item_id = response.text.partition('"item_id":"')[2].partition('"')[0]
    assert (await refer(bridge, [{"type": "item_reference", "id": item_id}])).status_code == 200
    assert servicer.requests[1].chat.turns[1].content == "New York\n“é”"


async def test_nothing_is_kept_of_a_request_with_store_false(bridge, servicer):
    servicer.script = replies_with_thoughts
    thoughts, message = await reply_items(bridge, store=False)
    refused = await refer(bridge, [message])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input[1]")
    assert message["id"] in refused.json()["error"]["message"]
    # Thoughts are left out instead.
    assert (await refer(bridge, [thoughts])).status_code == 200
    assert [turn.role for turn in servicer.requests[-1].chat.turns] == ["user", "user"]


async def test_another_account_cannot_refer_to_an_item(bridge, servicer):
    (message,) = await reply_items(bridge)
    for account, status in (("other", 400), ("another", 400)):
        response = await refer(bridge, [message], url=f"/client/v4/accounts/{account}/ai/v1/responses")
        assert response.status_code == status


def test_references_to_much_text_are_refused():
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x" * 1_000_000}]}
    conversation = Conversation("m", Toolbox(), lambda item_id: item)
    for index in range(3):
        conversation.add_item({"type": "item_reference", "id": "msg_0"}, f"/input/{index}")
    with pytest.raises(ApiError) as refusal:
        conversation.add_item({"type": "item_reference", "id": "msg_0"}, "/input/3")
    assert (refusal.value.code, refusal.value.param) == (5006, "input[3]")


@pytest.mark.parametrize("by", ["size", "time"])
def test_the_memory_is_bounded(by):
    now = 0.0
    items = RecentItems(max_bytes=10_000, seconds=60, clock=lambda: now)
    for number in range(20 if by == "size" else 2):
        items.add("acc", {"id": f"msg_{number}"}, 100)
        now += 0 if by == "size" else 61
    assert items.find("acc", "msg_0") is None
    assert (items.find("acc", "msg_19") is not None) == (by == "size")


@pytest.mark.parametrize("key", ["logprobs", "encrypted_content"])
def test_of_an_item_only_its_text_is_kept(key):
    part = {"type": "output_text", "text": "a", "logprobs": [{"token": "a", "top_logprobs": ["x" * 10_000]}]}
    thoughts = {"content": [{"type": "reasoning_text", "text": "a"}], "encrypted_content": "x" * 10_000}
    item = {"type": "message", "content": [part]} if key == "logprobs" else {"type": "reasoning", **thoughts}
    items = RecentItems()
    items.add("acc", {"id": "x_0", **item}, 1)
    found = items.find("acc", "x_0")
    assert found["content"][0]["text"] == "a" and len(str(found)) < 1000


def test_an_item_that_is_added_again_counts_once():
    items = RecentItems(max_bytes=10_000)
    for _ in range(20):
        items.add("acc", {"id": "msg_0"}, 100)
    items.add("acc", {"id": "msg_1"}, 100)
    assert items.find("acc", "msg_0") is not None
