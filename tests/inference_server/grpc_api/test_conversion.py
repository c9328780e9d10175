"""Checks and conversion of requests: wrong fields, defaults, and the limits of a model.

tests/tailrace_shared/test_request_fields.py has the ranges of the sampling parameters.
"""

import math
from functools import partial

import pytest
from google.protobuf.duration_pb2 import Duration

from inference_server.errors import InvalidField, PromptTooLong
from inference_server.generation import SamplingParams
from inference_server.grpc_api import validation as checks
from inference_server.grpc_api.conversion import encoded_prompt, generation_request, model_info
from inference_server.text.prompt_encoder import Prompt
from tailrace.v1 import inference_pb2 as pb
from tests.support.fakes import hosted_model
from tests.support.models.tiny_models import VOCAB_SIZE

LIMITS = checks.Limits(max_messages=4, max_schema_depth=3)
check = partial(checks.check, limits=LIMITS)
check_input = partial(checks.check_input, limits=LIMITS)


def run_request(*, model="tiny", text="hello", **fields):
    return pb.RunRequest(model=model, text=text, **fields)


def chat_request(*turns, **fields):
    chat = pb.Chat(turns=[pb.ChatTurn(role=role, content=content) for role, content in turns])
    return pb.RunRequest(model="tiny", chat=chat, **fields)


def violations(request, check=check):
    """Return the descriptions of the wrong fields, by field."""
    with pytest.raises(InvalidField) as caught:
        check(request)
    return {violation.field: violation.description for violation in caught.value.violations}


def accepted(request, *, num_prompt_tokens=10, **limits):
    check(request)
    return generation_request(request, "id", Prompt(list(range(num_prompt_tokens)), "none"), hosted_model(**limits))


def test_the_message_names_field_and_range():
    with pytest.raises(InvalidField, match="^sampling.top_p must be above 0, at most 1$"):
        check(run_request(sampling=pb.Sampling(top_p=2.0)))


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (["a"] * 17, "must have at most 16 strings"),
        (["a", ""], "must be strings of 1 to 256 characters"),
        (["ä" * 257], "must be strings of 1 to 256 characters"),
    ],
)
def test_too_many_or_too_long_stop_strings_are_refused(stop, said):
    assert violations(run_request(sampling=pb.Sampling(stop=stop))) == {"sampling.stop": said}


def test_the_most_and_longest_stop_strings_are_kept_in_order():
    stop = ["ä" * 256, *map(str, range(15))]
    assert accepted(run_request(sampling=pb.Sampling(stop=stop))).stop == tuple(stop)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param(run_request(model=""), "model", id="no model"),
        pytest.param(pb.RunRequest(model="tiny"), "input", id="no input"),
        pytest.param(run_request(text=""), "text", id="empty text"),
        pytest.param(chat_request(), "chat.turns", id="no turns"),
        pytest.param(chat_request(("user", "a"), ("", "b")), "chat.turns[1].role", id="no role"),
        pytest.param(chat_request(("r" * 65, "a")), "chat.turns[0].role", id="long role"),
        pytest.param(run_request(logprobs=pb.LogprobOptions(top=21)), "logprobs.top", id="many logprobs"),
        pytest.param(run_request(time_limit=Duration()), "time_limit", id="no time"),
        pytest.param(run_request(time_limit=Duration(nanos=-1)), "time_limit", id="negative time"),
        pytest.param(run_request(account="a" * 257), "account", id="long account"),
        pytest.param(run_request(priority=7), "priority", id="unknown priority"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(request_, field):
    assert list(violations(request_)) == [field]


def test_fields_at_their_limits_are_accepted():
    turns = [("r" * 64, ""), ("user", "a")]
    options = {"logprobs": pb.LogprobOptions(top=20), "time_limit": Duration(nanos=1), "account": "ä" * 256}
    request = accepted(chat_request(*turns, **options))
    assert (request.sampling.logprobs, request.account) == (20, "ä" * 256)
    assert request.time_limit_seconds == pytest.approx(1e-9)


def test_all_wrong_fields_are_named_together():
    wrong = {"temperature": -1, "top_p": 0, "top_k": 0, "repetition_penalty": 3, "max_tokens": 0}
    request = chat_request(
        ("", "a"),
        ("user", "b"),
        ("r" * 65, "c"),
        sampling=pb.Sampling(**wrong, stop=[""] * 17),
        logprobs=pb.LogprobOptions(top=21),
        time_limit=Duration(seconds=-1),
        account="a" * 257,
    )
    expected = {"chat.turns[0].role", "chat.turns[2].role", "logprobs.top", "time_limit", "account", "sampling.stop"}
    assert set(violations(request)) == expected | {f"sampling.{name}" for name in wrong}


@pytest.mark.parametrize("check", [check, check_input])
def test_a_missing_model_hides_no_other_wrong_field(check):
    request = pb.RunRequest() if check is not check_input else pb.CountTokensRequest()
    assert set(violations(request, check)) == {"model", "input"}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CountTokensRequest(text="a"), "model"),
        (pb.CountTokensRequest(model="tiny"), "input"),
        (pb.CountTokensRequest(model="tiny", chat=pb.Chat(turns=[pb.ChatTurn(content="a")])), "chat.turns[0].role"),
    ],
)
def test_counting_tokens_checks_the_same_input(request_, field):
    assert list(violations(request_, check_input)) == [field]


def test_counting_and_running_see_the_same_prompt():
    chat = pb.Chat(turns=[pb.ChatTurn(role="system", content="be brief"), pb.ChatTurn(role="user", content="hello")])
    for given in ({"text": "the program"}, {"chat": chat}):
        run = encoded_prompt(pb.RunRequest(model="tiny", **given), hosted_model())
        assert run == encoded_prompt(pb.CountTokensRequest(model="tiny", **given), hosted_model())
        assert run.token_ids[0] == 1


def test_a_bias_reaches_the_engine_by_token_id():
    biases = {VOCAB_SIZE - 1: 5.5, 0: -1.0, 7: -100.0}
    bias = accepted(run_request(sampling=pb.Sampling(logit_bias=biases))).sampling.logit_bias
    assert dict(zip(bias.token_ids, bias.values, strict=True)) == biases | {7: -1e9}  # -100 excludes the token
    assert accepted(run_request()).sampling.logit_bias is None


@pytest.mark.parametrize(
    ("biases", "fields", "said"),
    [
        ({5: 100.5, 3: math.nan, 4: 1.0}, ["sampling.logit_bias[3]", "sampling.logit_bias[5]"], "must be -100 to 100"),
        (dict.fromkeys(range(1025), 1.0), ["sampling.logit_bias"], "must have at most 1024 tokens"),
    ],
)
def test_a_bias_out_of_range_is_named_by_its_token(biases, fields, said):
    found = violations(run_request(sampling=pb.Sampling(logit_bias=biases)))
    assert list(found) == fields
    assert said in str(found)


def test_a_bias_for_a_token_that_the_model_lacks_is_refused():
    with pytest.raises(InvalidField) as caught:
        accepted(run_request(sampling=pb.Sampling(logit_bias={VOCAB_SIZE: 1.0, 2**32 - 1: 1.0, 3: 1.0})))
    assert [each.field for each in caught.value.violations] == [
        f"sampling.logit_bias[{VOCAB_SIZE}]",
        f"sampling.logit_bias[{2**32 - 1}]",
    ]
    assert f"the ids 0 to {VOCAB_SIZE - 1}" in str(caught.value)


# Defaults.


def test_unset_fields_take_the_defaults_of_the_contract():
    request = accepted(run_request())
    assert request.sampling == SamplingParams(
        seed=request.sampling.seed,
        temperature=0.6,
        top_p=1.0,
        top_k=None,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        logprobs=None,
    )
    assert (request.stop, request.time_limit_seconds, request.account) == ((), None, "")
    assert not request.reject_if_busy
    assert not request.sampling.ignore_eos


def test_zero_is_not_unset():
    request = accepted(run_request(sampling=pb.Sampling(temperature=0.0, seed=0), logprobs=pb.LogprobOptions()))
    assert (request.sampling.temperature, request.sampling.seed, request.sampling.logprobs) == (0.0, 0, 0)


def test_a_drawn_seed_is_valid_in_the_rest_interface():
    seeds = {accepted(run_request()).sampling.seed for _ in range(200)}
    assert len(seeds) == 200
    assert all(1 <= seed <= 9_999_999_999 for seed in seeds)
    assert max(seeds) > 2**32


def test_a_raw_prompt_is_continued_and_a_conversation_is_answered():
    assert accepted(run_request()).continues_prompt
    assert not accepted(chat_request(("user", "hello"))).continues_prompt


def test_sampling_fields_reach_the_engine():
    request = run_request(time_limit=Duration(seconds=2, nanos=500_000_000), account="acme", reject_if_busy=True)
    given = accepted(request)
    assert (given.request_id, list(given.prompt_ids)) == ("id", list(range(10)))
    assert (given.time_limit_seconds, given.account, given.reject_if_busy) == (2.5, "acme", True)


TUNED = {"temperature": 0.25, "top_k": 20, "repetition_penalty": 1.5, "max_tokens": 40}


def test_unset_sampling_fields_have_the_models_defaults():
    given = accepted(run_request(sampling=pb.Sampling(seed=1)), sampling=TUNED)
    assert given.sampling == SamplingParams(seed=1, temperature=0.25, top_k=20, repetition_penalty=1.5)
    assert given.max_tokens == 40


def test_values_of_the_request_replace_the_models_defaults_one_by_one():
    wanted = pb.Sampling(seed=1, temperature=0.0, repetition_penalty=1.0, max_tokens=50, stop=["x"])
    given = accepted(run_request(sampling=wanted), sampling=TUNED)
    assert given.sampling == SamplingParams(seed=1, temperature=0.0, top_k=20)
    assert (given.max_tokens, given.stop) == (50, ("x",))


def test_a_default_equals_the_same_value_in_a_request():
    explicit = accepted(run_request(sampling=pb.Sampling(seed=1, temperature=0.7, repetition_penalty=1.1)))
    assert (
        accepted(run_request(sampling=pb.Sampling(seed=1)), sampling={"temperature": 0.7, "repetition_penalty": 1.1})
        == explicit
    )


def test_the_default_penalties_do_not_apply_to_a_constrained_reply():
    form = pb.ResponseFormat(json_schema='{"type": "object"}')
    given = accepted(run_request(response_format=form), sampling=TUNED).sampling
    assert (given.repetition_penalty, given.temperature) == (1.0, 0.25)
    wanted = pb.Sampling(repetition_penalty=1.25)
    assert (
        accepted(run_request(response_format=form, sampling=wanted), sampling=TUNED).sampling.repetition_penalty == 1.25
    )


def test_the_models_longest_reply_need_not_fit_beside_the_prompt():
    limits = {"sampling": {"max_tokens": 100}, "window": 64}
    assert accepted(run_request(max_tokens_must_fit=True), num_prompt_tokens=60, **limits).max_tokens == 4


def test_the_model_list_has_the_defaults():
    listed = model_info(hosted_model(sampling=TUNED)).sampling_defaults
    assert listed == pb.Sampling(temperature=0.25, top_k=20, repetition_penalty=1.5, max_tokens=40)
    assert not model_info(hosted_model()).HasField("sampling_defaults")


# Limits.


@pytest.mark.parametrize(
    ("wanted", "num_prompt_tokens", "expected"),
    [(None, 10, 1800), (5, 10, 5), (1800, 10, 1800), (1801, 10, 1800), (2**32 - 1, 2048, 1800)],
)
def test_max_tokens_is_cut_to_the_sequence_length(wanted, num_prompt_tokens, expected):
    sampling = pb.Sampling() if wanted is None else pb.Sampling(max_tokens=wanted)
    assert accepted(run_request(sampling=sampling), num_prompt_tokens=num_prompt_tokens).max_tokens == expected


@pytest.mark.parametrize(
    ("num_prompt_tokens", "expected"), [(10, 2500), (1596, 2500), (1597, 2499), (3071, 1025), (3072, 1024)]
)
def test_the_reply_gets_the_rest_of_the_window(num_prompt_tokens, expected):
    limits = {"context_length": 3072, "sequence_length": 2500, "window": 4096}
    assert accepted(run_request(), num_prompt_tokens=num_prompt_tokens, **limits).max_tokens == expected


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers():
    accepted(run_request(), num_prompt_tokens=2048)
    with pytest.raises(PromptTooLong) as caught:
        accepted(run_request(), num_prompt_tokens=2049)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (2049, 2048)
    assert str(caught.value) == "the prompt has 2049 tokens, this model accepts at most 2048"


def test_a_window_smaller_than_the_context_leaves_room_for_one_token():
    assert accepted(run_request(), num_prompt_tokens=511, window=512).max_tokens == 1
    with pytest.raises(PromptTooLong) as caught:
        accepted(run_request(), num_prompt_tokens=512, window=512)
    assert caught.value.context_length == 511


def nested(depth: int) -> str:
    """Return a schema of `depth` nested objects."""
    return '{"items":' * (depth - 1) + "{}" + "}" * (depth - 1)


def test_a_conversation_and_a_schema_have_a_limit():
    turns = [("user", "hi")] * 4
    check(chat_request(*turns, response_format=pb.ResponseFormat(json_schema=nested(3))))
    assert violations(chat_request(*turns, ("user", "hi")))["chat.turns"] == "must have at most 4 turns"
    for text in (nested(4), nested(100_000)):
        wrong = violations(run_request(response_format=pb.ResponseFormat(json_schema=text)))
        assert wrong == {"response_format.json_schema": "must be nested at most 3 deep"}


def test_the_arguments_of_an_earlier_call_have_a_limited_depth():
    def request(depth):
        call = pb.ToolCall(id="a", name="f", arguments='{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}")
        turns = [pb.ChatTurn(role="user", content="hi"), pb.ChatTurn(role="assistant", tool_calls=[call])]
        return pb.RunRequest(model="tiny", chat=pb.Chat(turns=turns))

    check(request(100))
    assert violations(request(101)) == {"chat.turns[1].tool_calls[0].arguments": "must be nested at most 100 deep"}
