"""Switches for thinking, in the forms of several APIs."""

import json

import pytest

from http_bridge.errors import ApiError
from http_bridge.protocol.profiles import PROFILES
from http_bridge.protocol.to_grpc import run_request
from tests.http_bridge.conftest import BODIES

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return BODIES.chat({"model": "m", "messages": MESSAGES, **fields})


def problem(**fields):
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        *(({"reasoning_effort": effort}, effort) for effort in ("none", "minimal", "low", "medium", "high", "xhigh")),
        ({"reasoning_effort": "max"}, "xhigh"),
        ({"reasoning_effort": "default"}, ""),
        ({"reasoning_effort": None}, ""),
        ({"reasoning_effort": ""}, ""),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, "high"),
        ({"reasoning": {"enabled": False}}, "none"),
        ({"reasoning": {"enabled": True}}, "medium"),
        ({"enable_thinking": False}, "none"),
        ({"enable_thinking": True}, "medium"),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "enabled"}}, "medium"),
        ({"thinking": {"type": "adaptive"}}, ""),
        ({"thinking": False}, "none"),
        ({"enable_thinking": True, "reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "low"}}, "low"),
        ({"reasoning_effort": "none", "enable_thinking": False}, "none"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, ""),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"}, "low"),
        ({"chat_template_kwargs": {"thinking": False}, "reasoning_effort": "none"}, "none"),
        ({"chat_template_kwargs": {"reasoning_effort": "high"}, "enable_thinking": True}, "medium"),
    ],
)
def test_switches_agree_on_an_amount(fields, effort):
    assert chat(**fields).reasoning_effort == effort


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "none", "enable_thinking": True}, "enable_thinking"),
        ({"reasoning_effort": "high", "reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"reasoning_effort": "high", "thinking": {"type": "disabled"}}, "thinking"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs.enable_thinking",
        ),
        ({"chat_template_kwargs": {"enable_thinking": True, "thinking": False}}, "chat_template_kwargs.thinking"),
    ],
)
def test_a_contradiction_is_named(fields, param):
    error = problem(**fields)
    assert (error.param, "contradicts" in error.description) == (param, True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning_effort": 5}, "reasoning_effort"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"thinking": {"type": "perhaps"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
        ({"reasoning": {"max_tokens": 100}}, "reasoning.max_tokens"),
        ({"thinking_budget": 100}, "thinking_budget"),
        ({"reasoning_format": "raw"}, "reasoning_format"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": json.loads("[" * 40 + "]" * 40)}}, "chat_template_kwargs"),
    ],
)
def test_a_switch_that_cannot_be_honoured_is_refused(fields, param):
    assert problem(**fields).param == param


def test_template_arguments_reach_the_contract_as_they_are():
    arguments = {"enable_thinking": False, "städte": [1, {"a": None}]}
    for body in (
        chat(chat_template_kwargs=arguments),
        BODIES.run({"prompt": "hi", "chat_template_kwargs": arguments}, model="m"),
        BODIES.run({"messages": MESSAGES, "chat_template_kwargs": arguments}, model="m"),
    ):
        sent = run_request(body, PROFILES["default"], model="m", account="").chat.template_arguments
        assert json.loads(sent) == arguments
    assert chat(chat_template_kwargs={}).template_arguments == ""


@pytest.mark.parametrize(
    "fields", [{"reasoning": {"exclude": True}}, {"include_reasoning": False}, {"reasoning_format": "hidden"}]
)
def test_thoughts_can_be_left_out_of_the_reply(fields):
    assert chat(**fields).hides_reasoning and not chat(reasoning={"exclude": False}).hides_reasoning


@pytest.mark.parametrize(
    "fields", [{"reasoning_effort": "low"}, {"chat_template_kwargs": {"a": 1}}, {"enable_thinking": False}]
)
def test_a_prompt_without_a_template_cannot_be_switched(fields):
    for read in (
        lambda: BODIES.run({"prompt": "hi", "raw": True, **fields}, model="m"),
        lambda: BODIES.completion({"model": "m", "prompt": "hi", **fields}),
    ):
        with pytest.raises(ApiError, match="needs the model's chat template") as caught:
            read()
        assert caught.value.param == next(iter(fields))
