"""Variables, efforts, thoughts and continued turns in chat templates."""

import inspect

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from inference_server.errors import InvalidField
from inference_server.generation import ToolCall
from inference_server.text.chat.arguments import is_reserved, parsed
from inference_server.text.chat.prompts import ChatOptions
from inference_server.text.chat.turns import Turn
from inference_server.text.prompt_encoder import PromptEncoder
from tests.support.fakes import default_prompts, default_tokenizer, llama_tokenizer
from tests.support.models.thinking_models import chat_template, thinking_tokenizer

USER = Turn("user", "Where is the program?")


def encoder(name):
    return PromptEncoder(default_tokenizer(), chat_template=chat_template(name))


def end(name, *turns, **options):
    """Return the end of a prompt and the state of the thoughts there."""
    found = encoder(name).encode_conversation(turns or [USER], (), ChatOptions(**options))
    return default_tokenizer().decode(found.token_ids)[-len("<think>\n\n</think>\n\n") :], found.thoughts


@pytest.mark.parametrize(
    ("name", "options", "expected", "state"),
    [
        ("qwen3", {}, "assistant\n", "possible"),
        ("qwen3", {"effort": "high"}, "assistant\n", "possible"),
        ("qwen3", {"effort": "none"}, "<think>\n\n</think>\n\n", "off"),
        ("qwen3", {"arguments": {"enable_thinking": False}}, "<think>\n\n</think>\n\n", "off"),
        ("qwen3", {"effort": "none", "arguments": {"enable_thinking": True}}, "assistant\n", "possible"),
        ("qwen3", {"arguments": {"enable_thinking": 0}}, "assistant\n", "possible"),
        ("magistral", {"effort": "none"}, "[/INST]", "off"),
        ("qwen3", {"arguments": {"thinking": False}}, "assistant\n", "possible"),
        ("kimi_thinking", {}, "<think>", "open"),
        ("kimi_thinking", {"effort": "none"}, "<think></think>", "off"),
        ("kimi_thinking", {"arguments": {"thinking": False}}, "<think></think>", "off"),
        ("r1_distill", {}, "<think>\n", "open"),
        ("r1_distill", {"effort": "low"}, "<think>\n", "open"),
        ("r1_distill", {"effort": "none"}, "<think>\n\n</think>\n\n", "off"),
        ("magistral", {}, "[/INST]", "possible"),
        ("gemma_2", {"effort": "high"}, "model\n", "none"),
    ],
)
def test_the_templates_own_switch_follows_the_effort(name, options, expected, state):
    text, found = end(name, **options)
    assert text.endswith(expected)
    assert found == state


@pytest.mark.parametrize(
    ("effort", "expected"),
    [("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "medium"), ("xhigh", "xhigh"), ("", "medium")],
)
def test_a_template_gets_the_nearest_effort_that_it_accepts(effort, expected):
    found = encoder("effort").encode_conversation([USER], (), ChatOptions(effort=effort))
    assert default_tokenizer().decode(found.token_ids).startswith(f"Effort: {expected}\n")


def test_inputs_of_the_template_are_reserved():
    functions = (render_jinja_template, PreTrainedTokenizerBase.apply_chat_template)
    parameters = {name for function in functions for name in inspect.signature(function).parameters}
    for name in {*parameters, "messages", "raise_exception", *default_tokenizer().special_tokens_map}:
        assert is_reserved(name), name
    assert not any(map(is_reserved, ("enable_thinking", "thinking", "date_string", "max_thinking_tokens", "a b")))


def test_a_control_token_in_an_argument_stays_text():
    template = "{{ persona.name }}{% for k in persona %}{{ k }}{% endfor %}{{ messages[0].content }}<|im_end|>"
    prompts = PromptEncoder(default_tokenizer(), chat_template=template)
    arguments = {"persona": {"name": "<|im_end|>", "<|im_start|>": 1}}
    found = prompts.encode_conversation([USER], (), ChatOptions(arguments=arguments))
    assert [token for token in found.token_ids if not prompts.decoder.token_bytes(token)] == [2]
    assert default_tokenizer().decode(found.token_ids).startswith("<|im_end|>name<|im_start|>Where")


def test_a_lone_surrogate_becomes_a_replacement_character():
    template = "{{ note }}{{ messages[0].content }}"
    prompts = PromptEncoder(default_tokenizer(), chat_template=template)
    found = prompts.encode_conversation([USER], (), ChatOptions(arguments=parsed('{"note": "a\\ud800b"}')))
    assert default_tokenizer().decode(found.token_ids).startswith("a\ufffdb")


def test_thoughts_of_the_conversation_reach_the_template():
    turns = [USER, Turn("assistant", "There.", (ToolCall("1", "f", "{}"),), reasoning="Look."), Turn("tool", "x")]
    found = encoder("qwen3").encode_chat(turns)
    assert "<think>\nLook.\n</think>\n\nThere." in default_tokenizer().decode(found)


# Continued turns.

PREFILLS = ["The program", "The program is ", "  two\nlines\n", "{", "日本", "<|im_", ""]


@pytest.mark.parametrize("text", PREFILLS)
@pytest.mark.parametrize("name", ["qwen3", "chatml", "gemma_2", "mistral_v03", "llama_2"])
def test_a_continued_turn_has_the_tokens_of_transformers(name, text):
    found = encoder(name).encode_conversation(
        [USER, Turn("assistant", text)], (), ChatOptions(continue_final_turn=True)
    )
    expected = default_tokenizer().apply_chat_template(
        [{"role": "user", "content": USER.content}, {"role": "assistant", "content": text}],
        chat_template=chat_template(name),
        continue_final_message=True,
    )
    assert found.token_ids == expected["input_ids"]
    assert found.thoughts == ("off" if name == "qwen3" and not text else "none")


@pytest.mark.parametrize(
    ("name", "turn", "state", "expected"),
    [
        ("r1_distill", Turn("assistant", "<think>\nThe pro"), "continued", "<think>\nThe pro"),
        ("qwen3", Turn("assistant", "", reasoning="The pro"), "continued", "<think>\nThe pro"),
        ("r1_distill", Turn("assistant", "", reasoning="The pro"), "continued", "<think>\nThe pro"),
        ("qwen3", Turn("assistant", "So", reasoning="The pro"), "none", "</think>\n\nSo"),
    ],
)
def test_thoughts_can_be_continued(name, turn, state, expected):
    text, found = end(name, USER, turn, continue_final_turn=True)
    assert text.endswith(expected)
    assert found == state


def test_a_prompt_without_the_generation_prompt_ends_with_the_last_turn():
    text, _ = end("chatml", omit_generation_prompt=True)
    assert text.endswith("program?<|im_end|>\n")


@pytest.mark.parametrize("last", [USER, Turn("assistant", "x", (ToolCall("1", "f", "{}"),))])
def test_only_an_assistants_text_can_be_continued(last):
    with pytest.raises(InvalidField, match="continue_final_turn"):
        default_prompts().encode_conversation([USER, last], (), ChatOptions(continue_final_turn=True))


def test_a_turn_that_the_template_changes_cannot_be_continued():
    options = ChatOptions(continue_final_turn=True)
    with pytest.raises(InvalidField, match="changes this turn's text"):
        encoder("r1_distill").encode_conversation([USER, Turn("assistant", "<think>a</think>b")], (), options)


def test_a_model_without_a_template_refuses_options_as_it_refuses_chats():
    options = ChatOptions(effort="none", arguments={"enable_thinking": False})
    with pytest.raises(InvalidField, match="no chat template"):
        PromptEncoder(llama_tokenizer()).encode_conversation([USER], (), options)


def test_markers_that_are_control_tokens_stay_visible_in_replies():
    prompts = PromptEncoder(thinking_tokenizer(), chat_template=chat_template("magistral"))
    ids = thinking_tokenizer()("[THINK]the[/THINK]program", add_special_tokens=False)["input_ids"]
    assert prompts.decoder.decode_function(prompts.reasoning.visible_tokens)(ids).startswith("[THINK]")
    assert "THINK" not in prompts.decoder.decode(ids)
