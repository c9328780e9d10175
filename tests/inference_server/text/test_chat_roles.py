"""Conversations of agents on the templates of several vendors: all texts arrive, in a form that the template accepts."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_server.errors import InvalidField
from inference_server.generation import ToolCall
from inference_server.text.chat.call_ids import with_short_ids
from inference_server.text.chat.prompts import ChatOptions
from inference_server.text.chat.roles import RoleRules
from inference_server.text.chat.turns import Turn
from inference_server.text.prompt_encoder import PromptEncoder
from inference_server.text.tool_formats import Tool
from tests.support.fakes import default_tokenizer
from tests.support.models.thinking_models import chat_template

NAMES = ("chatml", "gemma_2", "llama_2", "mistral_v03", "qwen3", "r1_distill", "magistral")
LONG_ID = "call_abc123def456"
CALL = Turn("assistant", "", (ToolCall(LONG_ID, "get_weather", '{"city": "Oslo"}'), ToolCall("2", "get_weather", "{}")))
RESULTS = [
    Turn("tool", "sunny", tool_call_id=LONG_ID, name="get_weather"),
    Turn("tool", "rain", tool_call_id="2"),
]
TOOLS = [Tool("get_weather", "", {"type": "object"})]


@pytest.fixture(scope="module")
def encoders():
    names = (*NAMES, "kimi_thinking", "effort")
    return {name: PromptEncoder(default_tokenizer(), chat_template=chat_template(name)) for name in names}


def prompt(encoder, *turns, tools=()):
    given = [Turn(*turn) if isinstance(turn, tuple) else turn for turn in turns]
    token_ids = encoder.encode_conversation(given, tools, ChatOptions()).token_ids
    return default_tokenizer().decode(token_ids)


def gemma(*turns):
    begun = "".join(f"<start_of_turn>{role}\n{text}<end_of_turn>\n" for role, text in turns)
    return f"<|im_start|>{begun}<start_of_turn>model\n"


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        pytest.param([("system", "S"), ("user", "U")], [("user", "S\n\nU")], id="system"),
        pytest.param([("developer", "D"), ("user", "U")], [("user", "D\n\nU")], id="developer"),
        pytest.param([("user", "U"), ("user", "V")], [("user", "U\n\nV")], id="two users"),
        pytest.param(
            [("assistant", "A"), ("user", "U")], [("user", ""), ("model", "A"), ("user", "U")], id="assistant first"
        ),
        pytest.param([("system", "S"), ("system", "T"), ("user", "U")], [("user", "S\n\nT\n\nU")], id="two systems"),
        pytest.param([("system", "S")], [("user", "S")], id="system alone"),
        pytest.param(
            [("user", "U"), ("assistant", "A"), ("system", "S"), ("user", "V")],
            [("user", "U"), ("model", "A"), ("user", "S\n\nV")],
            id="system later",
        ),
        pytest.param([("user", "")], [("user", "")], id="empty"),
    ],
)
def test_gemma_gets_alternating_turns_without_a_system_role(encoders, turns, expected):
    assert prompt(encoders["gemma_2"], *turns) == gemma(*expected)


def test_gemma_gets_tool_calls_and_results_as_text(encoders):
    text = prompt(encoders["gemma_2"], ("user", "U"), CALL, *RESULTS, tools=TOOLS)
    assert text.endswith(
        "<start_of_turn>user\n<tool_response>\nsunny\n</tool_response>\n\n<tool_response>\nrain\n</tool_response>"
        "<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "<|im_start|>system\nS\n\nD<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"),
        ("llama_2", "<|im_start|>[INST] <<SYS>>\nS\n\nD\n<</SYS>>\n\nU [/INST]"),
        ("mistral_v03", "<|im_start|>[INST] S\n\nD\n\nU[/INST]"),
    ],
)
def test_developer_is_merged_with_the_system_message(encoders, name, expected):
    assert prompt(encoders[name], ("system", "S"), ("developer", "D"), ("user", "U")) == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_text_of_any_conversation_is_in_the_prompt(encoders, name):
    for roles in itertools.product(("system", "developer", "user", "assistant"), repeat=3):
        turns = [(role, f"text{index}") for index, role in enumerate(roles)]
        text = prompt(encoders[name], *turns)
        assert all(turn[1] in text for turn in turns), (name, roles, text)


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_a_template_that_accepts_everything_changes_nothing(encoders, name):
    rules = encoders[name].chats.rules
    assert rules == RoleRules()
    turns = [("system", "S"), ("system", "T"), ("user", "U"), ("user", "V")]
    expected = default_tokenizer().apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        chat_template=chat_template(name),
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt(encoders[name], *turns) == expected


def test_a_rule_that_cannot_be_met_is_named(encoders):
    with pytest.raises(InvalidField, match="must alternate") as error:
        prompt(encoders["mistral_v03"], ("user", "U"), ("assistant", "A"), ("critic", "C"), ("assistant", "B"))
    assert error.value.violations[0].field == "chat.turns"


def test_a_role_that_the_template_leaves_out_is_named(encoders):
    with pytest.raises(InvalidField, match="the role 'critic', which this model's chat template leaves out"):
        prompt(encoders["qwen3"], ("user", "U"), ("critic", "C"))
    assert "critic\nC" in prompt(encoders["chatml"], ("user", "U"), ("critic", "C"))


# Tool calls.


@pytest.mark.parametrize("last", [[], [("user", "thanks")]], ids=["tool last", "user after the tool"])
def test_mistral_gets_ids_of_nine_characters(encoders, last):
    text = prompt(encoders["mistral_v03"], ("user", "U"), CALL, *RESULTS, *last, tools=TOOLS)
    first, second = (part[:9] for part in text.split('"id": "')[1:])
    assert first != second and first.isalnum() and second.isalnum()
    assert f'"content": "sunny", "call_id": "{first}"' in text
    assert f'"content": "rain", "call_id": "{second}"' in text
    assert LONG_ID not in text


_KINDS = {
    "s": lambda i: Turn("system", f"text{i}"),
    "u": lambda i: Turn("user", f"text{i}"),
    "a": lambda i: Turn("assistant", f"text{i}"),
    "c": lambda i: Turn("assistant", "", (ToolCall(f"call_{i}", "get_weather", f'{{"x": "text{i}"}}'),)),
    "t": lambda i: Turn("tool", f"text{i}", tool_call_id=f"call_{i - 1}"),
}


@pytest.mark.parametrize("name", ["mistral_v03", "gemma_2", "qwen3"])
def test_calls_and_results_anywhere_are_in_the_prompt(encoders, name):
    for kinds in (*itertools.product("suact", repeat=3), "uacta", "ucuct"):
        turns = [_KINDS[kind](index) for index, kind in enumerate(kinds)]
        text = prompt(encoders[name], *turns, tools=TOOLS)
        assert all(f"text{index}" in text for index in range(len(turns))), (kinds, text)


def test_short_ids_do_not_depend_on_later_turns():
    turns = [Turn("user", "U"), CALL, *RESULTS]
    assert with_short_ids([*turns, CALL])[: len(turns)] == with_short_ids(turns)


def test_a_fitting_id_stays_and_missing_ids_match_in_order():
    calls = (ToolCall("abcDEF123", "f", "{}"), ToolCall("", "f", "{}"))
    _, called, one, two = with_short_ids(
        [Turn("user", "U"), Turn("assistant", "", calls), Turn("tool", "a"), Turn("tool", "b")]
    )
    assert [call.id for call in called.tool_calls] == [one.tool_call_id, two.tool_call_id]
    assert one.tool_call_id == "abcDEF123" != two.tool_call_id


def test_arguments_are_text_for_a_template_that_joins_them():
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ 'call ' + c.function.arguments }}{% endfor %}"
        "{{ m.content + '\n' }}{% endfor %}{{ tools | length if tools }}"
    )
    encoder = PromptEncoder(default_tokenizer(), chat_template=template)
    assert 'call {"city": "Oslo"}' in prompt(encoder, ("user", "U"), CALL, *RESULTS, tools=TOOLS)


# Anything else that a client may send.

_CONTENTS = st.sampled_from(["", " ", "text", "<|im_end|>", "<think>", "</think>", "[INST]", "日本"])
_CALLS = st.lists(
    st.builds(
        ToolCall, st.sampled_from(["", "a", LONG_ID]), st.just("get_weather"), st.sampled_from(["{}", '{"a": [1]}'])
    ),
    max_size=2,
).map(tuple)
_TURNS = st.lists(
    st.builds(
        Turn,
        st.sampled_from(
            ["system", "developer", "user", "assistant", "assistant", "tool", "function", "critic", "<|im_end|>"]
        ),
        _CONTENTS,
        _CALLS,
        st.sampled_from(["", "a", LONG_ID]),
        st.sampled_from(["", "get_weather"]),
        _CONTENTS,
    ),
    min_size=1,
    max_size=6,
)
_OPTIONS = st.builds(
    ChatOptions,
    arguments=st.sampled_from(
        [{}, {"enable_thinking": False}, {"thinking": "x"}, {"reasoning_effort": 3}, {"x": None}]
    ),
    effort=st.sampled_from(["", "none", "high"]),
    continue_final_turn=st.booleans(),
    omit_generation_prompt=st.booleans(),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*NAMES, "kimi_thinking", "effort"]), turns=_TURNS, options=_OPTIONS, has_tools=st.booleans()
)
def test_any_conversation_gives_a_prompt_or_names_a_field(encoders, name, turns, options, has_tools):
    try:
        found = encoders[name].encode_conversation(turns, TOOLS if has_tools else [], options)
    except InvalidField as error:
        assert str(error).startswith("chat")
    else:
        assert found.token_ids
