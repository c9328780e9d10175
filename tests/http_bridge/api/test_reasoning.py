"""Thoughts in chat completions: beside the content and never in it, streamed or not, and in the usage."""

import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.api.test_openai import CHAT, TEXT, TOOL, call_of, chunks

URL = "/v1/chat/completions"


def thinks(*deltas, reason=pb.FINISH_REASON_STOP, reasoning_tokens=3):
    async def script(reply):
        await reply.accept()
        await reply.start()
        for delta in deltas:
            await reply.context.write(pb.RunResponse(delta=delta))
        usage = pb.Usage(prompt_tokens=5, completion_tokens=7, reasoning_tokens=reasoning_tokens)
        await reply.context.write(pb.RunResponse(completed=pb.Completed(finish_reason=reason, usage=usage)))

    return script


ALL = [pb.Delta(reasoning="Let me "), pb.Delta(reasoning="see."), pb.Delta(text="Oslo"), pb.Delta(text=".")]


@pytest.mark.parametrize("extra", [{}, {"tools": [TOOL]}, {"logprobs": True}])
async def test_thoughts_are_beside_the_content(bridge, servicer, extra):
    servicer.script = thinks(*ALL)
    body = (await bridge.ask({**CHAT, **extra}, url=URL)).json()
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == (
        "Oslo.",
        "Let me see.",
        "Let me see.",
    )
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


@pytest.mark.parametrize(
    "extra", [{}, {"tools": [TOOL]}, {"logprobs": True}, {"stream_options": {"include_usage": True}}]
)
async def test_streamed_thoughts_are_beside_the_content(bridge, servicer, extra):
    servicer.script = thinks(*ALL)
    events = chunks(await bridge.ask({**CHAT, **extra, "stream": True}, url=URL))
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert deltas[1:-1] == [
        {"reasoning_content": "Let me ", "reasoning": "Let me "},
        {"reasoning_content": "see.", "reasoning": "see."},
        {"content": "Oslo"},
        {"content": "."},
    ]


async def test_a_delta_with_thoughts_and_text_loses_neither(bridge, servicer):
    servicer.script = thinks(
        pb.Delta(reasoning="a", text="b"), pb.Delta(reasoning="\n“é”\u2028", tool_calls=[call_of()])
    )
    events = chunks(await bridge.ask({**CHAT, "stream": True}, url=URL))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[1] == {"content": "b", "reasoning_content": "a", "reasoning": "a"}
    assert deltas[2]["reasoning_content"] == "\n“é”\u2028" and deltas[2]["tool_calls"][0]["index"] == 0


async def test_a_thought_is_one_line_of_json(bridge, servicer):
    servicer.script = thinks(pb.Delta(reasoning='"\\ \x85\u2028 é'))
    response = await bridge.ask({**CHAT, "stream": True}, url=URL)
    assert len(response.text.strip().splitlines()) == len(response.text.strip().split("\n"))
    assert chunks(response)[1]["choices"][0]["delta"]["reasoning_content"] == '"\\ \x85\u2028 é'


async def test_a_reply_that_is_all_thought_has_empty_content_and_ends_by_length(bridge, servicer):
    servicer.script = thinks(pb.Delta(reasoning="Hmm"), reason=pb.FINISH_REASON_LENGTH, reasoning_tokens=7)
    body = (await bridge.ask({**CHAT, "max_tokens": 7}, url=URL)).json()
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("", "Hmm")
    assert (choice["finish_reason"], body["usage"]["completion_tokens_details"]) == ("length", {"reasoning_tokens": 7})
    events = chunks(await bridge.ask({**CHAT, "stream": True}, url=URL))
    assert all(not event["choices"][0]["delta"].get("content") for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("switch", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
@pytest.mark.parametrize("extra", [{}, {"tools": [TOOL]}])
async def test_thoughts_are_left_out_on_request(bridge, servicer, switch, extra):
    servicer.script = thinks(*ALL, pb.Delta(reasoning="x", text="!"))
    message = (await bridge.ask({**CHAT, **switch, **extra}, url=URL)).json()["choices"][0]["message"]
    assert (message["content"], "reasoning_content" in message) == ("Oslo.!", False)
    response = await bridge.ask({**CHAT, **switch, **extra, "stream": True}, url=URL)
    assert "reasoning_content" not in response.text and "see." not in response.text
    assert '"!"' in response.text


async def test_thoughts_are_never_text_of_the_other_routes(bridge, servicer):
    servicer.script = thinks(*ALL)
    assert (await bridge.ask(TEXT, url="/v1/completions")).json()["choices"][0]["text"] == "Oslo."
    assert (await bridge.ask()).json()["result"]["response"] == "Oslo."
    events = chunks(await bridge.ask({**TEXT, "stream": True}, url="/v1/completions"))
    assert "".join(event["choices"][0]["text"] for event in events) == "Oslo."
    events = chunks(await bridge.ask({"prompt": "hi", "stream": True}))
    assert "".join(event["response"] for event in events) == "Oslo."


@pytest.mark.parametrize("base", ["/v1", "/client/v4/accounts/acc/ai/v1"])
async def test_skipped_tools_are_in_a_header(bridge, servicer, base):
    tools = [{"type": "web_search"}, TOOL, {"type": "mcp"}, {"type": "odd\r\nname: x"}]
    for stream in (False, True):
        response = await bridge.ask({**CHAT, "tools": tools, "stream": stream}, url=f"{base}/chat/completions")
        assert response.headers["tailrace-skipped-tools"] == "web_search, mcp, other"
    assert [tool.name for tool in servicer.requests[0].chat.tools] == ["weather"]
    run = await bridge.ask({"messages": CHAT["messages"], "tools": tools[:2]})
    assert run.headers["tailrace-skipped-tools"] == "web_search"
    assert "tailrace-skipped-tools" not in (await bridge.ask()).headers
