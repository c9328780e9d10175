"""Constrained replies over a real connection on a tiny Llama: JSON documents, tool calls, reply lengths."""

import asyncio
import json

import grpc
import pytest
import pytest_asyncio

from tailrace.v1 import inference_pb2 as pb
from tests.support.servers import chat, details, running_server, write_catalog

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
WEATHER = pb.Tool(name="weather", description="Returns the weather", parameters=json.dumps(SCHEMA))
CLOCK = pb.Tool(name="clock", parameters='{"properties": {}, "additionalProperties": false}')


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tiny_model, tmp_path_factory):
    catalog = write_catalog(tmp_path_factory.mktemp("catalog") / "catalog.toml", tiny_model("llama-2"), sequence=400)
    async with running_server(catalog, max_running_seqs=4) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


def json_request(schema=SCHEMA, **sampling):
    request = chat(**{"temperature": 2.0, "seed": 1, **sampling})
    request.response_format.json_schema = schema if isinstance(schema, str) else json.dumps(schema)
    return request


def tool_request(*tools, choice=pb.TOOL_CHOICE_REQUIRED, name="", allowed=(), parallel=None, schema=None, **sampling):
    request = chat(**{"temperature": 2.0, "seed": 1, **sampling})
    request.chat.tools.extend(tools)
    request.chat.tool_choice = choice
    request.chat.tool_name = name
    request.chat.allowed_tools.extend(allowed)
    if parallel is not None:
        request.chat.parallel_tool_calls = parallel
    if schema is not None:
        request.response_format.json_schema = json.dumps(schema)
    return request


async def reply(running, request):
    """Return text, tool calls and the last event of a reply."""
    events = [event async for event in running.stub.Run(request)]
    text = "".join(event.delta.text for event in events)
    return text, [call for event in events for call in event.delta.tool_calls], events[-1].completed


async def refusal(running, request):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reply(running, request)
    return caught.value


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.5}, {"repetition_penalty": 1.5}]
)
async def test_a_reply_fits_its_schema_for_any_seed(running, fields):
    text, _, completed = await reply(running, json_request(**fields))
    assert set(json.loads(text)) == {"a", "b"}
    assert completed.finish_reason == pb.FINISH_REASON_STOP


async def test_constrained_and_free_replies_share_a_batch(running):
    requests = [json_request(seed=seed) for seed in range(1, 5)] + [chat(max_tokens=30, seed=9)] * 2
    alone = await reply(running, chat(max_tokens=30, seed=9))
    together = await asyncio.gather(*(reply(running, request) for request in requests))
    assert all(json.loads(text) for text, _, _ in together[:4])
    assert [text for text, _, _ in together[4:]] == [alone[0]] * 2


async def test_the_same_seed_gives_the_same_document(running):
    texts = {(await reply(running, json_request(seed=5)))[0] for _ in range(3)}
    assert len(texts) == 1


async def test_any_json_object_begins_with_a_brace(running):
    request = chat(max_tokens=20, temperature=1.0, seed=1)
    request.response_format.json_object = True
    text, _, _ = await reply(running, request)
    assert text.startswith("{")


async def test_a_cut_document_ends_by_length(running):
    _, _, completed = await reply(running, json_request(max_tokens=3))
    assert completed.finish_reason == pb.FINISH_REASON_LENGTH


async def test_log_probabilities_ignore_the_constraint(running):
    request = json_request(max_tokens=3)
    request.logprobs.top = 3
    events = [event async for event in running.stub.Run(request)]
    tops = [logprob.top[0].logprob for event in events for logprob in event.delta.logprobs]
    assert len(tops) == 3 and all(top > -10 for top in tops)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"parallel": False}, {"weather", "clock"}),
        ({"name": "weather"}, {"weather"}),
        ({"name": "weather", "allowed": ["weather"]}, {"weather"}),
        ({"allowed": ["weather"], "parallel": False}, {"weather"}),
    ],
)
async def test_a_required_call_is_one_call_of_an_allowed_tool(running, fields, names):
    text, calls, completed = await reply(running, tool_request(WEATHER, CLOCK, **fields))
    assert (text, len(calls), completed.finish_reason) == ("", 1, pb.FINISH_REASON_TOOL_CALLS)
    assert calls[0].name in names and len(calls[0].id) == 9
    assert isinstance(json.loads(calls[0].arguments), dict)


async def test_a_required_reply_may_have_several_calls_but_not_for_ever(running):
    replies = [await reply(running, tool_request(WEATHER, seed=seed)) for seed in range(1, 6)]
    assert all(text == "" and 1 <= len(calls) <= 8 for text, calls, _ in replies)
    assert any(len(calls) > 1 for _, calls, _ in replies)


@pytest.mark.parametrize("choice", [pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_AUTO])
@pytest.mark.parametrize("length", [1, 2, 5, 15])
async def test_a_cut_call_is_no_text(running, choice, length):
    schema = SCHEMA if choice == pb.TOOL_CHOICE_AUTO else None
    request = tool_request(WEATHER, choice=choice, max_tokens=length, schema=schema)
    text, calls, completed = await reply(running, request)
    assert "<" not in text and not calls
    assert completed.finish_reason == pb.FINISH_REASON_LENGTH and completed.usage.completion_tokens == length


async def test_tools_and_a_schema_give_calls_or_a_document(running):
    outcomes = set()
    for seed in range(1, 13):
        request = tool_request(WEATHER, choice=pb.TOOL_CHOICE_AUTO, schema=SCHEMA, parallel=False, seed=seed)
        text, calls, completed = await reply(running, request)
        is_call = completed.finish_reason == pb.FINISH_REASON_TOOL_CALLS
        assert bool(text) is not is_call and len(calls) == is_call
        assert set(json.loads(calls[0].arguments if is_call else text)) == {"a", "b"}
        outcomes.add(is_call)
    assert outcomes == {True, False}


@pytest.mark.parametrize(("choice", "is_call"), [(pb.TOOL_CHOICE_REQUIRED, True), (pb.TOOL_CHOICE_NONE, False)])
async def test_the_tool_choice_decides_between_calls_and_the_document(running, choice, is_call):
    for seed in range(1, 4):
        request = tool_request(WEATHER, choice=choice, schema=SCHEMA, parallel=False, seed=seed)
        text, calls, _ = await reply(running, request)
        assert (bool(calls), bool(text)) == (is_call, not is_call)


async def test_without_a_required_call_the_model_may_answer_with_text(running):
    request = tool_request(WEATHER, choice=pb.TOOL_CHOICE_AUTO, temperature=0.0, max_tokens=10)
    text, calls, completed = await reply(running, request)
    assert text and not calls and completed.finish_reason == pb.FINISH_REASON_LENGTH


async def test_tools_add_prompt_tokens_unless_calls_are_off(running):
    counts = []
    for tools, choice in [((), 0), ((WEATHER,), pb.TOOL_CHOICE_NONE), ((WEATHER,), pb.TOOL_CHOICE_AUTO)]:
        request = tool_request(*tools, choice=choice)
        counted = await running.stub.CountTokens(pb.CountTokensRequest(model=request.model, chat=request.chat))
        counts.append(counted.prompt_tokens)
    assert counts[0] == counts[1] < counts[2]


async def test_a_conversation_with_calls_and_answers_is_accepted(running):
    request = chat(max_tokens=3, seed=1)
    call = pb.ToolCall(id="abcdefghi", name="weather", arguments='{"a": "Oslo", "b": 1}')
    request.chat.turns.append(pb.ChatTurn(role="assistant", tool_calls=[call]))
    request.chat.turns.append(pb.ChatTurn(role="tool", content="rain", tool_call_id="abcdefghi", name="weather"))
    assert (await reply(running, request))[2].usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("schema", "field", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "response_format.json_schema", "'uniqueItems'"),
        ("{", "response_format.json_schema", "is not JSON"),
        ("[]", "response_format.json_schema", "is not a JSON Schema"),
    ],
)
async def test_a_schema_that_cannot_be_enforced_is_refused(running, schema, field, message):
    error = await refusal(running, json_request(schema))
    (violation,) = details(error)["BadRequest"].field_violations
    assert (violation.field, message in violation.description) == (field, True)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (tool_request(), "chat.tool_choice"),
        (tool_request(CLOCK, CLOCK), "chat.tools[1].name"),
        (tool_request(pb.Tool(name="")), "chat.tools[0].name"),
        (tool_request(pb.Tool(name="x", parameters="[]")), "chat.tools[0].parameters"),
        (tool_request(CLOCK, name="weather"), "chat.tool_name"),
        (tool_request(CLOCK, choice=pb.TOOL_CHOICE_AUTO, name="clock"), "chat.tool_name"),
        (tool_request(CLOCK, allowed=["clock", "weather"]), "chat.allowed_tools[1]"),
        (tool_request(CLOCK, allowed=["weather"], choice=pb.TOOL_CHOICE_NONE), "chat.allowed_tools[0]"),
        (tool_request(CLOCK, WEATHER, allowed=["clock"], name="weather"), "chat.tool_name"),
        (tool_request(CLOCK, allowed=["clock"] * 129), "chat.allowed_tools"),
    ],
)
async def test_wrong_tools_are_named(running, request_, field):
    error = await refusal(running, request_)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in details(error)["BadRequest"].field_violations] == [field]


ODD = pb.Tool(name="odd", parameters='{"properties": {"a": {"type": "array", "uniqueItems": true}}}')


async def test_a_tools_schema_that_cannot_be_enforced_fails_forced_calls_alone(running):
    error = await refusal(running, tool_request(CLOCK, ODD))
    (violation,) = details(error)["BadRequest"].field_violations
    assert violation.field == "chat.tools[1].parameters"
    assert violation.description == "has 'uniqueItems' at /properties/a, which cannot be enforced"
    for fields in ({"schema": SCHEMA}, {"parallel": False}, {"allowed": ["odd"]}):
        request = tool_request(CLOCK, ODD, choice=pb.TOOL_CHOICE_AUTO, max_tokens=5, **fields)
        assert (await reply(running, request))[2].usage.completion_tokens == 5


async def test_the_documents_schema_is_refused_though_there_are_tools(running):
    wrong = {"type": "array", "uniqueItems": True}
    error = await refusal(running, tool_request(CLOCK, choice=pb.TOOL_CHOICE_AUTO, schema=wrong))
    assert details(error)["BadRequest"].field_violations[0].field == "response_format.json_schema"


async def test_all_tools_are_shown_though_only_some_are_allowed(running):
    counts = []
    for allowed in ((), ("clock",)):
        request = tool_request(WEATHER, CLOCK, allowed=allowed)
        counted = await running.stub.CountTokens(pb.CountTokensRequest(model=request.model, chat=request.chat))
        counts.append(counted.prompt_tokens)
    assert counts[0] == counts[1]


async def test_a_reply_that_cannot_fit_is_refused_with_the_numbers(running):
    request = chat(max_tokens=5000)
    request.max_tokens_must_fit = True
    info = details(await refusal(running, request))["ErrorInfo"]
    assert info.reason == "NO_ROOM_FOR_REPLY" and info.metadata["max_tokens"] == "5000"
    request.sampling.max_tokens = 5
    assert (await reply(running, request))[2].usage.completion_tokens <= 5


async def test_the_catalog_decides_the_form_of_forced_calls(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"), sequence=400)
    catalog.write_text(catalog.read_text() + 'tool_format = "qwen3_coder"\n')
    async with running_server(catalog) as running:
        (model,) = (await running.stub.ListModels(pb.ListModelsRequest())).models
        text, calls, _ = await reply(running, tool_request(WEATHER, name="weather"))
        cut, none, completed = await reply(running, tool_request(WEATHER, max_tokens=20))
    given = json.loads(calls[0].arguments)
    assert (model.tool_format, text, cut, none) == ("qwen3_coder", "", "", [])
    assert len(given["a"]) <= 4 and given["b"] in range(100)
    assert completed.finish_reason == pb.FINISH_REASON_LENGTH
