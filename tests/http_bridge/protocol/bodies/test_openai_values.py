"""Values of OpenAI's clients: those that mean unset, ranges, and fields that cannot be honoured."""

import json

import pytest

from http_bridge.errors import ApiError
from http_bridge.protocol.profiles import PROFILES
from http_bridge.protocol.to_grpc import run_request
from tests.http_bridge.conftest import BODIES

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return BODIES.chat({"model": "m", "messages": MESSAGES, **fields})


def completion(**fields):
    return BODIES.completion({"model": "m", "prompt": "hi", **fields})


def run(**fields):
    return BODIES.run({"prompt": "hi", **fields}, model="m")


def problem(read, **fields):
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.code) == (400, 5006)
    return caught.value


@pytest.mark.parametrize("read", [chat, completion])
@pytest.mark.parametrize(
    "fields",
    [
        *({name: value} for name in ("max_tokens", "top_k", "n") for value in (-1, 0, None, "", -1.0, 0.0)),
        {"seed": -1},
        {"seed": None},
        {"stop": ""},
        {"stop": [""]},
        {"stop": []},
        {"stop": None},
        {"logit_bias": {}},
        {"logit_bias": None},
        {"logit_bias": {"5": 0}},
        {"temperature": ""},
        {"response_format": None},
    ],
)
def test_a_value_that_means_unset_is_unset(read, fields):
    assert read(**fields) == read()


def test_other_unset_values_of_one_route():
    assert chat(max_completion_tokens=-1) == chat() and completion(best_of=0) == completion()
    assert chat(max_completion_tokens=0, max_tokens=9).sampling == {"max_tokens": 9}


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"seed": 0}, {"seed": 0}),
        ({"top_k": 100}, {"top_k": 100}),
        ({"top_k": 10**12}, {"top_k": 2**32 - 1}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_p": 0}, {"top_p": 0.001}),
    ],
)
def test_odd_values_with_a_meaning_are_kept(fields, sampling):
    assert chat(**fields).sampling == sampling


def test_empty_stop_strings_are_dropped_from_others():
    assert chat(stop=["a", "", "b"]).stop == ("a", "b")


@pytest.mark.parametrize("value", [False, True, [], "5", 5.5, -2])
def test_a_wrong_value_is_not_unset(value):
    assert problem(chat, max_tokens=value).param == "max_tokens"


@pytest.mark.parametrize("read", [chat, completion, run])
def test_a_logit_bias_reaches_the_contract(read):
    body = read(logit_bias={"1": -100, "50256": 2.5})
    assert dict(run_request(body, PROFILES["default"], model="m", account="").sampling.logit_bias) == {
        1: -100,
        50256: 2.5,
    }


@pytest.mark.parametrize("bias", [{"x": 1}, {"1": 101}, {"-1": 1}, {"1": "a"}, {str(10**12): 1}, [1]])
def test_a_wrong_logit_bias_is_refused(bias):
    assert problem(chat, logit_bias=bias).param.startswith("logit_bias")


def test_many_biases_are_refused():
    assert problem(chat, logit_bias={str(token): 1 for token in range(1025)}).param == "logit_bias"


def test_the_account_path_keeps_workers_ais_ranges():
    error = problem(run, top_k=100, max_tokens=-1, seed=0, stop=[""])
    for part in (
        "'/top_k' must be <= 50",
        "'/max_tokens' must be >= 1",
        "'/seed' must be >= 1",
        "'/stop/0' must not be",
    ):
        assert part in error.description


@pytest.mark.parametrize(
    ("read", "fields"),
    [
        (chat, {"functions": [{"name": "f"}]}),
        (chat, {"function_call": {"name": "f"}}),
        (chat, {"modalities": ["text", "audio"]}),
        (chat, {"audio": {"voice": "alloy", "format": "wav"}}),
        (chat, {"web_search_options": {}}),
        (chat, {"store": True}),
        (chat, {"verbosity": "low"}),
        (chat, {"chat_template": "{{ messages }}"}),
        (chat, {"documents": [{"text": "x"}]}),
        (chat, {"guided_json": {"type": "object"}}),
        (chat, {"use_beam_search": True}),
        (chat, {"images": ["x"]}),
        (completion, {"suffix": "end"}),
        (completion, {"best_of": 3}),
        (completion, {"guided_regex": "a+"}),
        (run, {"image": [137, 80, 78, 71]}),
        (run, {"image": "iVBORw0KGgo="}),
        (run, {"functions": [{"name": "f", "code": "x"}]}),
        (run, {"audio": [1, 2]}),
        (run, {"n": 2}),
        (run, {"logprobs": True}),
        (run, {"top_logprobs": 2}),
        (chat, {"echo": True}),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(read, fields):
    (name,) = fields
    error = problem(read, **fields)
    assert error.param == name and error.description.startswith(f"Bad input: Error: '/{name}' ")


@pytest.mark.parametrize(
    ("read", "fields"),
    [
        (chat, {"functions": [], "function_call": "auto", "modalities": ["text"], "audio": None, "store": False}),
        (
            chat,
            {
                "metadata": {"a": "b"},
                "user": "u",
                "service_tier": "flex",
                "prediction": {"type": "content", "content": ""},
            },
        ),
        (chat, {"verbosity": "medium", "prompt_cache_key": "x", "safety_identifier": "y", "unknown": {"a": 1}}),
        (completion, {"suffix": "", "best_of": 1, "user": "u"}),
        (run, {"image": [], "functions": [], "audio": None, "n": 1, "logprobs": False, "top_logprobs": 0}),
    ],
)
def test_a_field_that_changes_nothing_is_accepted(read, fields):
    assert read(**fields) == read()


@pytest.mark.parametrize("read", [chat, completion, run])
@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_beside_the_type_is_not_ignored(read, kind):
    form = {"type": kind, "name": "x", "schema": {"type": "object"}}
    assert read(response_format=form).json_schema == '{"type": "object"}'
    deep = json.loads('{"a":' * 40 + "1" + "}" * 40)
    assert problem(read, response_format={"type": kind, "schema": deep}).param == "response_format.json_schema"


def test_max_completion_tokens_is_max_tokens_on_the_account_path_too():
    assert run(max_completion_tokens=9).sampling == {"max_tokens": 9}
    assert run(max_completion_tokens=9, max_tokens=5).sampling == {"max_tokens": 5}
    assert problem(run, max_completion_tokens=0).param == "max_tokens"


@pytest.mark.parametrize("prompts", [[], [""], [[1, 2]], [1, 2], ["a"] * 9])
def test_wrong_prompts_are_refused(prompts):
    assert problem(completion, prompt=prompts).param.startswith("prompt")


def test_prompts_times_n_is_bounded():
    assert completion(prompt=["a", "b"], n=4).further_prompts == ("b",)
    assert problem(completion, prompt=["a", "b", "c"], n=3).param == "prompt"


def test_a_picture_is_refused_with_the_models_name():
    assert "the model m reads text only" in problem(run, image=[137, 80, 78, 71]).description
    assert "the model m reads text only" in problem(run, image="x", messages=MESSAGES).description
