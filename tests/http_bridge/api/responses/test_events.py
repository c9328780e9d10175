"""OpenAI's Responses API: the Response object, the order of the events, and the request that the server receives."""

import asyncio

import pytest
from openai.types.responses import Response

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.api.responses.conftest import ASKED, URL, WEATHER, events_of, replying, types_of
from tests.http_bridge.conftest import MODEL, RUN_URL

ACCOUNT_URL = "/client/v4/accounts/acc/ai/v1/responses"


def call(name="weather", arguments='{"city": "Kyoto"}', call_id="abcdefghi"):
    return pb.Delta(tool_calls=[pb.ToolCall(id=call_id, name=name, arguments=arguments)])


@pytest.mark.parametrize("url", [URL, ACCOUNT_URL])
async def test_a_response_has_every_field_of_the_sdks_type(bridge, servicer, url):
    servicer.script = replying(pb.Delta(text="New"), pb.Delta(text=" York"))
    body = (await bridge.ask(ASKED, url=url)).json()
    response = Response.model_validate(body)
    assert response.output_text == "New York" and response.status == "completed"
    (message,) = body["output"]
    part = {"type": "output_text", "text": "New York", "annotations": [], "logprobs": []}
    assert message == {
        "id": message["id"],
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    assert body["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 12,
    }
    assert (body["store"], body["error"], body["incomplete_details"], body["truncation"]) == (
        False,
        None,
        None,
        "disabled",
    )
    assert body["id"].startswith("resp_") and message["id"].startswith("msg_")


async def test_the_events_of_a_text_are_in_openais_order(bridge, servicer):
    servicer.script = replying(pb.Delta(text="New"), pb.Delta(text=" York\u2028“é”"))
    events = events_of(await bridge.ask({**ASKED, "stream": True}, url=URL))
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events[4:6]] == ["New", " York\u2028“é”"]
    assert events[6]["text"] == "New York\u2028“é”"
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert len({event["item_id"] for event in events[3:8]} | {events[2]["item"]["id"]}) == 1


async def test_a_stream_and_a_complete_reply_have_the_same_output(bridge, servicer):
    servicer.script = replying(pb.Delta(reasoning="Hm"), pb.Delta(text="Yes"), call())
    body = {**ASKED, "tools": [WEATHER]}
    complete = (await bridge.ask(body, url=URL)).json()
    streamed = events_of(await bridge.ask({**body, "stream": True}, url=URL))[-1]["response"]
    for response in (complete, streamed):
        for item in response["output"]:
            item.pop("id")
    assert complete["output"] == streamed["output"] and len(complete["output"]) == 3


async def test_thoughts_are_an_item_before_the_message(bridge, servicer):
    servicer.script = replying(pb.Delta(reasoning="Let me"), pb.Delta(reasoning=" think", text="42"))
    events = events_of(await bridge.ask({**ASKED, "stream": True}, url=URL))
    assert types_of(events)[2:] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    thoughts, message = events[-1]["response"]["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Let me think"}] and thoughts["summary"] == []
    assert message["content"][0]["text"] == "42"
    assert [event["output_index"] for event in events[2:-1]] == [0] * 7 + [1] * 6


async def test_a_requested_summary_has_the_thoughts(bridge, servicer):
    servicer.script = replying(pb.Delta(reasoning="Hm"), pb.Delta(text="42"))
    body = {**ASKED, "reasoning": {"effort": "low", "summary": "auto"}, "stream": True}
    events = events_of(await bridge.ask(body, url=URL))
    assert types_of(events)[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert events[-1]["response"]["output"][0]["summary"] == [{"type": "summary_text", "text": "Hm"}]
    assert servicer.requests[0].chat.reasoning_effort == "low"


async def test_sealed_thoughts_come_back_as_thoughts(bridge, servicer):
    servicer.script = replying(pb.Delta(reasoning="Hm, é"), call())
    body = {**ASKED, "include": ["reasoning.encrypted_content"], "tools": [WEATHER], "store": False}
    first, *rest = (await bridge.ask(body, url=URL)).json()["output"]
    sealed = {"type": "reasoning", "id": first["id"], "summary": [], "encrypted_content": first["encrypted_content"]}
    await bridge.ask({**ASKED, "input": [{"role": "user", "content": "hi"}, sealed, *rest]}, url=URL)
    turn = servicer.requests[1].chat.turns[1]
    assert (turn.role, turn.reasoning, turn.tool_calls[0].name) == ("assistant", "Hm, é", "weather")


async def test_a_tool_call_is_a_function_call_item(bridge, servicer):
    servicer.script = replying(call(), call(call_id="second123"), reason=pb.FINISH_REASON_TOOL_CALLS)
    body = (await bridge.ask({**ASKED, "tools": [WEATHER]}, url=URL)).json()
    first, second = body["output"]
    assert (first["type"], first["call_id"], first["name"], first["arguments"], first["status"]) == (
        "function_call",
        "abcdefghi",
        "weather",
        '{"city": "Kyoto"}',
        "completed",
    )
    assert second["id"] != first["id"] and body["status"] == "completed"


async def test_a_streamed_tool_call_has_its_arguments_in_events(bridge, servicer):
    servicer.script = replying(pb.Delta(text="Wait."), call(), reason=pb.FINISH_REASON_TOOL_CALLS)
    events = events_of(await bridge.ask({**ASKED, "tools": [WEATHER], "stream": True}, url=URL))
    assert types_of(events)[-6:] == [
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[-5]["item"]["arguments"] == "" and events[-3]["arguments"] == '{"city": "Kyoto"}'


async def test_a_reply_that_is_cut_is_incomplete(bridge, servicer):
    servicer.script = replying(pb.Delta(text="New"), reason=pb.FINISH_REASON_LENGTH)
    body = (await bridge.ask({**ASKED, "max_output_tokens": 1}, url=URL)).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete" and body["max_output_tokens"] == 1
    assert servicer.requests[0].sampling.max_tokens == 1
    events = events_of(await bridge.ask({**ASKED, "stream": True}, url=URL))
    assert events[-1]["type"] == "response.incomplete" and events[-2]["item"]["status"] == "incomplete"


async def test_a_reply_of_thoughts_alone_has_no_message(bridge, servicer):
    servicer.script = replying(pb.Delta(reasoning="Hm"), reason=pb.FINISH_REASON_LENGTH)
    body = (await bridge.ask(ASKED, url=URL)).json()
    assert [(item["type"], item["status"]) for item in body["output"]] == [("reasoning", "incomplete")]
    assert Response.model_validate(body).output_text == ""


async def test_an_empty_reply_is_an_empty_message(bridge, servicer):
    servicer.script = replying()
    assert (await bridge.ask(ASKED, url=URL)).json()["output"][0]["content"][0]["text"] == ""
    events = events_of(await bridge.ask({**ASKED, "stream": True}, url=URL))
    assert types_of(events)[2:] == [
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


async def test_a_reply_that_ends_in_the_queue_begins_with_created(bridge, servicer):
    async def expire(reply):
        await reply.accept()
        completed = pb.Completed(finish_reason=pb.FINISH_REASON_TIME_LIMIT)
        await reply.context.write(pb.RunResponse(completed=completed))

    servicer.script = expire
    events = events_of(await bridge.ask({**ASKED, "stream": True}, url=URL))
    assert types_of(events)[:2] == ["created", "in_progress"] and types_of(events)[-1] == "incomplete"


async def test_log_probabilities_are_included_on_request(bridge, servicer):
    token = pb.Candidate(text="é".encode(), logprob=-0.5)
    logprob = pb.TokenLogprob(token=token, top=[token])
    servicer.script = replying(pb.Delta(text="é", tokens=1, logprobs=[logprob]))
    body = {**ASKED, "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    part = (await bridge.ask(body, url=URL)).json()["output"][0]["content"][0]
    entry = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    assert part["logprobs"] == [{**entry, "top_logprobs": [entry]}]
    assert servicer.requests[0].logprobs.top == 1
    events = events_of(await bridge.ask({**body, "stream": True}, url=URL))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert deltas[0]["logprobs"][0]["token"] == "é"


async def test_the_request_is_echoed(bridge):
    sent = {
        **ASKED,
        "instructions": "Be brief",
        "metadata": {"key": "value"},
        "temperature": 0.25,
        "top_p": 0.5,
        "user": "u",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "service_tier": "auto",
    }
    body = (await bridge.ask(sent, url=URL)).json()
    same = set(sent) - {"input", "service_tier"}
    assert {name: body[name] for name in same} == {name: sent[name] for name in same}
    assert body["text"] == {"format": {"type": "text"}, "verbosity": "medium"}


async def test_obfuscation_is_sent_on_request(bridge):
    body = {**ASKED, "stream": True, "stream_options": {"include_obfuscation": True}}
    events = events_of(await bridge.ask(body, url=URL))
    texts = [event for event in events if event["type"] == "response.output_text.delta"]
    assert texts and [event for event in events if "obfuscation" in event] == texts


@pytest.mark.parametrize("body", [{"input": "hi"}, {"input": [{"role": "user", "content": "hi"}]}])
async def test_ai_run_takes_the_form_too(bridge, servicer, body):
    response = (await bridge.ask({**body, "instructions": "Be brief"}, url=RUN_URL)).json()
    assert response["success"] is True and response["result"]["output"][0]["content"][0]["text"] == "New York\n“é”"
    generic = await bridge.ask({**body, "model": MODEL}, url="/client/v4/accounts/acc/ai/run")
    assert generic.json()["result"]["object"] == "response"
    assert [turn.role for turn in servicer.requests[0].chat.turns] == ["system", "user"]
    assert not servicer.requests[0].sampling.HasField("max_tokens")


async def test_a_worker_gets_the_response_without_an_envelope(bridge):
    headers = {"cf-consn-model-id": MODEL}
    response = await bridge.ask({"inputs": {"input": "hi"}}, url="/run?version=3", headers=headers)
    assert response.json()["object"] == "response"
    streamed = await bridge.ask({"inputs": {"input": "hi", "stream": True}}, url="/run?version=3", headers=headers)
    assert types_of(events_of(streamed))[-1] == "completed"


@pytest.mark.parametrize("body", [{"prompt": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}])
async def test_a_model_of_this_shape_answers_other_bodies_in_it_too(bridge, servicer, body):
    servicer.models[0].reply_shape = "responses"
    response = (await bridge.ask({**body, "tools": [WEATHER]})).json()
    assert response["result"]["object"] == "response" and response["result"]["tools"][0]["name"] == "weather"
    events = events_of(await bridge.ask({**body, "stream": True}))
    assert types_of(events)[-1] == "completed"


async def test_a_model_of_this_shape_takes_the_values_of_other_forms(bridge, servicer):
    servicer.models[0].reply_shape = "responses"
    fields = {"reasoning": "high", "text": "x", "include": 5, "tools": [{"type": "namespace", "tools": 5}, WEATHER]}
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    result = (await bridge.ask(body)).json()["result"]
    assert result["reasoning"]["effort"] == "high" and [tool["name"] for tool in result["tools"]] == ["weather"]
    assert (await bridge.ask({"prompt": "hi", "raw": True, "stream_options": 5})).status_code == 200


async def test_a_batch_of_responses(bridge):
    body = {"requests": [{"input": "a"}, {"input": [{"role": "user", "content": "b"}], "instructions": "Be brief"}]}
    queued = (await bridge.ask(body, url=f"{RUN_URL}?queueRequest=true")).json()["result"]
    async with asyncio.timeout(5):
        while "responses" not in (found := (await bridge.ask({"request_id": queued["request_id"]})).json()["result"]):
            await asyncio.sleep(0.01)
    results = [response["result"] for response in found["responses"]]
    assert [result["output"][0]["content"][0]["text"] for result in results] == ["New York\n“é”"] * 2
    assert len({result["id"] for result in results}) == 2
