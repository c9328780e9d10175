"""Replies of reasoning models over a real connection: thoughts in their own field, counted, and before any grammar.

The tiny models follow a script as far as a grammar allows, so that every reply is known.
"""

import json

import grpc
import pytest
import pytest_asyncio

from tailrace.v1 import inference_pb2 as pb
from tests.support.engines import entry
from tests.support.models.thinking_models import hosting_script, write_thinking_model
from tests.support.servers import details, running_server, write_catalog

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEMA = '{"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": false}'
WEATHER = pb.Tool(name="get_weather", parameters='{"type": "object", "properties": {}, "additionalProperties": false}')
TEMPLATES = {"qwen3": True, "r1_distill": True, "magistral": True, "chatml": True, "spelled": False}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    """Run a server with one model for each template. Yields the script of all replies, and the stub."""
    entries = []
    for name, has_marker_tokens in TEMPLATES.items():
        template = name if has_marker_tokens else "qwen3"
        folder = write_thinking_model(tmp_path_factory.mktemp(name), template, has_marker_tokens=has_marker_tokens)
        entries.append(entry(folder, name=name, context_length=1024, sequence_length=512))
    async with hosting_script(*entries) as (script, models):
        catalog = write_catalog(tmp_path_factory.mktemp("catalog") / "catalog.toml", folder)
        async with running_server(catalog, load=False) as running:
            running.server.servicer.models = models
            yield script, running.stub


class Replied:
    """A complete reply."""

    def __init__(self, events):
        deltas = [event.delta for event in events if event.HasField("delta")]
        self.thoughts = "".join(delta.reasoning for delta in deltas)
        self.text = "".join(delta.text for delta in deltas)
        self.calls = [call for delta in deltas for call in delta.tool_calls]
        self.num_deltas = len(deltas)
        completed = events[-1].completed
        self.usage, self.stop_string = completed.usage, completed.stop_string
        self.reason = pb.FinishReason.Name(completed.finish_reason).removeprefix("FINISH_REASON_")
        assert sum(delta.tokens for delta in deltas) <= self.usage.completion_tokens


async def reply(server, text, model="qwen3", *, end=True, sampling=None, response_format=None, **chat):
    script, stub = server
    script.text, script.end_after = text, end
    turns = chat.pop("turns", [pb.ChatTurn(role="user", content="where is it")])
    request = pb.RunRequest(
        model=model,
        chat=pb.Chat(turns=turns, **chat),
        sampling=pb.Sampling(temperature=0, **{"max_tokens": 300, **(sampling or {})}),
        response_format=response_format,
    )
    return Replied([event async for event in stub.Run(request)])


async def test_thoughts_have_their_own_field(server):
    found = await reply(server, "<think>\nit is many people\n</think>\n\nthe program")
    assert (found.thoughts, found.text, found.reason) == ("it is many people", "the program", "STOP")
    assert 0 < found.usage.reasoning_tokens < found.usage.completion_tokens


async def test_a_template_that_begins_the_thoughts_needs_no_marker(server):
    found = await reply(server, "it is\n</think>\n\nthe program", "r1_distill")
    assert (found.thoughts, found.text) == ("it is", "the program")


async def test_control_tokens_as_markers_are_found_and_left_out(server):
    found = await reply(server, "[THINK]it is[/THINK]the program", "magistral")
    assert (found.thoughts.strip(), found.text.strip()) == ("it is", "the program")


@pytest.mark.parametrize("model", ["qwen3", "spelled"])
async def test_a_reply_that_is_all_thought_has_no_content(server, model):
    found = await reply(server, "<think>\n" + "it is " * 60, model, sampling={"max_tokens": 40})
    assert (found.text, found.reason) == ("", "LENGTH")
    assert found.thoughts.startswith("it is it is")
    assert found.usage.reasoning_tokens == found.usage.completion_tokens == 40


async def test_half_a_marker_never_leaks(server):
    found = await reply(server, "<think>it is</think>", "spelled", sampling={"max_tokens": 4})
    assert (found.thoughts, found.text, found.reason) == ("", "", "LENGTH")


async def test_a_reply_without_thoughts_is_all_content(server):
    found = await reply(server, "the <think> program")
    assert found.thoughts == "" and found.text.startswith("the <think>")
    assert found.usage.reasoning_tokens == 0


async def test_no_think_in_the_prompt_gives_empty_thoughts(server):
    turns = [pb.ChatTurn(role="user", content="where is it /no_think")]
    found = await reply(server, "<think>\n\n</think>\n\nthe program", turns=turns)
    assert (found.thoughts, found.text) == ("", "the program")


async def test_a_plain_model_keeps_markers_as_text(server):
    found = await reply(server, "<think>it</think>the", "chatml")
    assert found.thoughts == "" and found.text.startswith("<think>")


async def test_a_stop_string_matches_in_the_content_only(server):
    found = await reply(server, "<think>many people</think>the people of it", sampling={"stop": ["people"]})
    assert found.thoughts == "many people"
    assert (found.text.strip(), found.reason, found.stop_string) == ("the", "STOP", "people")


# Grammars and tool calls.


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("qwen3", '<think>\nit is {"b" many\n</think>\n\n{"a":1}'),
        ("spelled", '<think>\nit is {"b" many\n</think>\n\n{"a":1}'),
        ("r1_distill", 'it is {"b" many\n</think>\n\n{"a":1}'),
    ],
)
async def test_a_schema_applies_after_the_thoughts(server, model, text):
    found = await reply(server, text, model, response_format=pb.ResponseFormat(json_schema=SCHEMA))
    assert found.thoughts == 'it is {"b" many'
    assert (json.loads(found.text), found.reason) == ({"a": 1}, "STOP")


@pytest.mark.parametrize("option", [{"reasoning_effort": "none"}, {"template_arguments": '{"enable_thinking": false}'}])
async def test_a_schema_applies_from_the_first_token_without_thinking(server, option):
    found = await reply(
        server, "<think>it is</think>the", response_format=pb.ResponseFormat(json_schema=SCHEMA), **option
    )
    assert (found.thoughts, json.loads(found.text)) == ("", {"a": 1})


async def test_thoughts_under_a_schema_may_use_up_the_tokens(server):
    response_format = pb.ResponseFormat(json_object=True)
    found = await reply(
        server, "it is " * 60, "r1_distill", sampling={"max_tokens": 30}, response_format=response_format
    )
    assert (found.text, found.reason) == ("", "LENGTH")


@pytest.mark.parametrize("choice", [pb.TOOL_CHOICE_AUTO, pb.TOOL_CHOICE_REQUIRED])
async def test_a_call_follows_the_thoughts(server, choice):
    call = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    text = f"<think>\nit is {call} many\n</think>\n\n{call}"
    found = await reply(server, text, tools=[WEATHER], tool_choice=choice)
    assert "<tool_call>" in found.thoughts and found.text.strip() == ""
    assert [one.name for one in found.calls] == ["get_weather"]
    assert found.reason == ("TOOL_CALLS")


# Options.


async def test_a_continued_turn_is_continued_exactly(server):
    turns = [pb.ChatTurn(role="user", content="where"), pb.ChatTurn(role="assistant", content="the program")]
    found = await reply(server, "is", "chatml", turns=turns, continue_final_turn=True)
    assert found.text == " is"


async def test_continued_thoughts_stay_thoughts(server):
    turns = [pb.ChatTurn(role="user", content="where"), pb.ChatTurn(role="assistant", reasoning="it is")]
    found = await reply(server, "many\n</think>\n\nthe program", turns=turns, continue_final_turn=True)
    assert (found.thoughts, found.text) == (" many", "the program")


async def test_counting_has_the_same_options(server):
    _, stub = server
    turns = [pb.ChatTurn(role="developer", content="is"), pb.ChatTurn(role="user", content="where")]
    counts = {
        option: (
            await stub.CountTokens(pb.CountTokensRequest(model="qwen3", chat=pb.Chat(turns=turns, **dict([option]))))
        ).prompt_tokens
        for option in (
            ("reasoning_effort", ""),
            ("reasoning_effort", "none"),
            ("template_arguments", '{"enable_thinking": false}'),
            ("omit_generation_prompt", True),
        )
    }
    default, none, argument, omitted = counts.values()
    assert omitted < default < none == argument


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("template_arguments", "[1]", "must be a JSON object"),
        ("template_arguments", '{"messages": []}', "must not set 'messages'"),
        ("template_arguments", '{"bos_token": "x"}', "must not set 'bos_token'"),
        ("template_arguments", '{"x": "' + "x" * 2**16 + '"}', "at most 65536 characters"),
        ("template_arguments", '{"x": ' + "[" * 500 + "]" * 500 + "}", "nested at most"),
        ("reasoning_effort", "extreme", "must be one of none, minimal, low"),
        ("omit_generation_prompt", True, "must not be combined with continue_final_turn"),
        ("continue_final_turn", True, "needs a last turn with the role assistant"),
    ],
)
async def test_a_wrong_option_is_named(server, field, value, sentence):
    _, stub = server
    chat = pb.Chat(turns=[pb.ChatTurn(role="user", content="x")], **{field: value})
    chat.continue_final_turn = field in ("omit_generation_prompt", "continue_final_turn")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.CountTokens(pb.CountTokensRequest(model="qwen3", chat=chat))
    (violation,) = details(error.value)["BadRequest"].field_violations
    assert violation.field == f"chat.{field}" and sentence in violation.description


async def test_the_model_list_tells_reasoning_models(server):
    _, stub = server
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert {model.name: model.has_reasoning for model in models} == {name: name != "chatml" for name in TEMPLATES}
