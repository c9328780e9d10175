"""Which requests have the same recording, and which have not."""

import pytest

from inference_server.grpc_api.recordings.canonical import canonical, key
from inference_server.grpc_api.recordings.difference import first_difference, nearest
from tailrace.v1 import inference_pb2 as pb
from tests.inference_server.grpc_api.recordings.messages import run

DEFAULTS = pb.Sampling(top_p=0.9, frequency_penalty=0.2)
SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}}}'


def key_of(request: pb.RunRequest, defaults: pb.Sampling = DEFAULTS) -> str:
    return key("Run", canonical(request, defaults))


def with_tool(parameters: str, choice: int = pb.TOOL_CHOICE_AUTO) -> pb.RunRequest:
    request = run()
    request.chat.tools.add(name="f", parameters=parameters)
    request.chat.tool_choice = choice
    return request


@pytest.mark.parametrize(
    "same",
    [
        run(account="a", priority=pb.PRIORITY_BATCH, reject_if_busy=True, max_tokens_must_fit=True),
        run(sampling=pb.Sampling(temperature=0.6)),
        run(sampling=pb.Sampling(top_p=0.9, min_p=0.0)),
    ],
    ids=["account and priority", "the server's default", "the model's default"],
)
def test_what_does_not_change_the_reply_is_not_compared(same):
    assert key_of(same) == key_of(run())


@pytest.mark.parametrize(
    "other",
    [
        run("Where is new york"),
        run(sampling=pb.Sampling(seed=0)),
        run(sampling=pb.Sampling(max_tokens=9)),
        run(sampling=pb.Sampling(stop=["."])),
        run(logprobs=pb.LogprobOptions()),
        run(response_format=pb.ResponseFormat(json_schema=SCHEMA)),
        run(adapter="legal"),
        with_tool(SCHEMA),
        pb.RunRequest(model=run().model, text="where is new york"),
    ],
)
def test_what_changes_the_reply_is_compared(other):
    assert key_of(other) != key_of(run())


def test_spaces_and_the_order_of_keys_in_json_texts_make_no_difference():
    other = '{"properties":{"a":{"type":"string"}},"type":"object"}'
    assert key_of(with_tool(SCHEMA)) == key_of(with_tool(other, pb.TOOL_CHOICE_UNSPECIFIED))
    assert key_of(with_tool(SCHEMA, pb.TOOL_CHOICE_REQUIRED)) != key_of(with_tool(SCHEMA))


def test_the_models_penalties_do_not_apply_to_a_constrained_reply():
    request = run(response_format=pb.ResponseFormat(json_schema=SCHEMA))
    assert canonical(request, DEFAULTS)["sampling"]["frequency_penalty"] == 0.0
    assert canonical(run(), DEFAULTS)["sampling"]["frequency_penalty"] == 0.2


def test_another_default_of_the_model_is_another_request():
    assert key_of(run(), pb.Sampling(top_p=0.8)) != key_of(run())


def test_the_nearest_recording_differs_in_the_fewest_fields_then_in_the_least_text():
    wanted = canonical(run("where is old york"), DEFAULTS)
    texts = ["name three animals", "where is new york", "where are the hills of new york"]
    assert nearest(wanted, [canonical(run(text), DEFAULTS) for text in texts]) == 1
    assert nearest(wanted, [canonical(run("where is old york", logprobs=pb.LogprobOptions(top=1)), DEFAULTS)] * 2) == 0
    assert nearest(wanted, []) is None


def test_the_first_difference_is_shown_with_its_surroundings():
    long = "x" * 500
    first, second = (canonical(run(f"{long}{word}{long}"), DEFAULTS) for word in ("new", "old"))
    difference = first_difference(first, second)
    assert difference.field == "chat.turns[0].content"
    assert "new" in difference.requested and "old" in difference.recorded
    assert max(map(len, (difference.requested, difference.recorded))) < 70


def test_names_with_dots_and_brackets_make_a_difference():
    texts = ['{"a.b": 1}', '{"a": {"b": 1}}', '{"a": [1]}', '{"a[0]": 1}']
    requests = [canonical(with_tool(text), DEFAULTS) for text in texts]
    fields = [first_difference(first, second).field for first in requests for second in requests if first is not second]
    assert len(fields) == 12 and 'chat.tools[0].parameters["a.b"]' in fields


def test_a_field_that_only_one_request_has_differs_from_nothing():
    first, second = canonical(run(sampling=pb.Sampling(seed=5)), DEFAULTS), canonical(run(), DEFAULTS)
    difference, back = first_difference(first, second), first_difference(second, first)
    assert (difference.field, difference.requested, difference.recorded) == ("sampling.seed", '"5"', "nothing")
    assert (back.requested, back.recorded) == ("nothing", '"5"')
