"""A grammar applies after the thoughts: free text up to the end marker, then only what the grammar allows."""

import json
import random
import re

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from inference_server.engine.vllm.sampling_params import grammar_arguments
from inference_server.text.grammar import Grammars
from inference_server.text.prompt_encoder import PromptEncoder
from inference_server.text.reasoning.model import ModelThoughts
from inference_server.text.tool_formats import Tool
from inference_server.text.tools.call_grammar import ReplyForm, reply_grammar
from tests.support.models.thinking_models import chat_template, thinking_tokenizer

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
EOS = 2


class Model:
    """Tokenizer, grammars and thoughts of a model, with the markers as tokens or spelled by several tokens."""

    def __init__(self, template="qwen3", *, has_marker_tokens=True):
        self.tokenizer = thinking_tokenizer(has_marker_tokens=has_marker_tokens)
        prompts = PromptEncoder(self.tokenizer, chat_template=chat_template(template))
        self.size = len(self.tokenizer)
        self.grammars = Grammars(self.tokenizer, self.size)
        self.text = prompts.decoder.decode_function(prompts.reasoning.visible_tokens)
        self.thoughts = ModelThoughts(prompts.reasoning, prompts.decoder, self.grammars.literal, self.size, {EOS})

    def constraint(self, state, inner=None):
        return self.thoughts.constrain(inner or self.grammars.json_schema(SCHEMA), state)

    def ids(self, text):
        """Return the ids of a text in the middle of a reply. SentencePiece would add a space after each marker."""
        ids = []
        for part in filter(None, re.split(r"(<think>|</think>|\[/?THINK\]|</?tool_call>)", text)):
            found = self.tokenizer.convert_tokens_to_ids(part)
            encoded = self.tokenizer("\n" + part, add_special_tokens=False)["input_ids"]
            is_token = part in self.tokenizer.get_added_vocab()
            ids += [found] if is_token else encoded[2:]
        return ids

    def accepts(self, constraint, text):
        for token_id in self.ids(text):
            if not constraint.allowed()[token_id]:
                return False
            constraint.accept(token_id)
        return True


@pytest.fixture(scope="module", params=[True, False], ids=["tokens", "spelled"])
def model(request):
    return Model(has_marker_tokens=request.param)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("open", 'it is "{[ </ text\n</think>{"a":1}'),
        ("open", 'it is\n</think>\n\n{"a":1}'),
        ("continued", '</think>\n{"a":1}'),
        ("possible", '<think>it is</think>\n{"a":1}'),
        ("possible", '{"a":1}'),
        ("off", '{"a":1}'),
        ("none", '{"a":1}'),
    ],
)
def test_a_document_may_follow_the_thoughts(model, state, text):
    constraint = model.constraint(state)
    assert model.accepts(constraint, text)
    assert constraint.is_complete


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("open", "it is</think>the"),
        ("open", '</think>{"b":1}'),
        ("possible", "the"),
        ("possible", "<think></think>the"),
        ("off", "<think>"),
        ("off", "the"),
    ],
)
def test_nothing_else_may_follow_the_thoughts(model, state, text):
    assert not model.accepts(model.constraint(state), text)


@pytest.mark.parametrize("state", ["open", "possible", "off"])
def test_the_reply_cannot_end_before_the_document(model, state):
    constraint = model.constraint(state)
    assert not constraint.allowed()[EOS] and not constraint.is_complete
    if state == "open":
        model.accepts(constraint, "it is</think>")
        assert not constraint.allowed()[EOS] and not constraint.is_complete


@pytest.mark.parametrize("state", ["open", "possible", "off"])
@pytest.mark.parametrize("seed", range(8))
def test_any_allowed_tokens_give_thoughts_and_a_document(model, state, seed):
    chance = random.Random(seed)
    constraint = model.constraint(state)
    ids = []
    ends = model.ids("</think>")
    while not constraint.is_complete and len(ids) < 400:
        # Bytes that are not text could be part of a marker in the tokens, but not in the text.
        allowed = [token for token in np.flatnonzero(constraint.allowed()) if token < 131 or token >= 259]
        wanted = ends[len(ids) - 12] if 12 <= len(ids) < 12 + len(ends) else int(chance.choice(allowed))
        ids.append(wanted if wanted in allowed else int(chance.choice(allowed)))
        constraint.accept(ids[-1])
    text = model.text(ids)
    document = text.rpartition("</think>")[2]
    if constraint.is_complete:
        assert isinstance(json.loads(document)["a"], int)
    else:
        assert len(ids) == 400


def test_a_token_must_not_hold_the_end_of_the_marker_and_more():
    class Bytes(Model):
        def __init__(self):
            super().__init__(has_marker_tokens=False)
            texts = {10: b">{", 11: b">\n", 12: b"</think>{", 13: b"k>x", 14: b">", 15: b"</think"}
            self.thoughts._tokens.token_text = lambda token_id: texts.get(token_id, b"")
            self.thoughts._tokens._is_ready = False

    model = Bytes()
    constraint = model.constraint("open")
    assert not constraint.allowed()[12] and constraint.allowed()[10] and constraint.allowed()[13]
    constraint.accept(15)
    allowed = constraint.allowed()
    assert not allowed[10] and allowed[11] and allowed[14] and allowed[13]


@pytest.mark.parametrize(("state", "text"), [("possible", "{"), ("open", "x</think>\n{")])
def test_a_token_is_accepted_without_another_mask(model, state, text):
    inner = model.grammars.json_schema(SCHEMA)
    constraint = model.constraint(state, inner)
    number_of_masks, allowed = [], inner.allowed
    inner.allowed = lambda: number_of_masks.append(1) or allowed()
    for token_id in model.ids(text):
        assert constraint.allowed()[token_id]
        before = len(number_of_masks)
        constraint.accept(token_id)
        assert len(number_of_masks) == before


def test_a_required_call_follows_the_thoughts():
    model = Model()
    start, end = (model.grammars.literal(marker) for marker in ("<tool_call>", "</tool_call>"))
    inner = model.grammars.lark(f'start: {start} "{{}}" {end}')
    constraint = model.constraint("open", inner)
    assert model.accepts(constraint, "it is</think>\n\n<tool_call>{}</tool_call>")
    assert constraint.is_complete
    assert not model.accepts(model.constraint("open", inner), "it is</think>the")


@pytest.mark.parametrize("kind", ["json_schema", "lark", "text or calls"])
@pytest.mark.parametrize("state", ["open", "possible"])
@pytest.mark.parametrize(("template", "has_marker_tokens"), [("qwen3", True), ("qwen3", False), ("magistral", True)])
def test_vllm_gets_one_grammar_of_thoughts_and_document(template, has_marker_tokens, state, kind):
    model = Model(template, has_marker_tokens=has_marker_tokens)
    form = ReplyForm(tools=[Tool("f", "", {"type": "object"})], is_parallel=False, beside="text")
    inner, document = {
        "json_schema": lambda: (model.grammars.json_schema(SCHEMA), '{"a":1}'),
        "lark": lambda: (model.grammars.lark('start: "{}"'), "{}"),
        "text or calls": lambda: (model.grammars.lark(reply_grammar("hermes", form, model.grammars.literal)), "the"),
    }[kind]()
    arguments = grammar_arguments(model.constraint(state, inner).grammar)
    tokenizer = LLTokenizer(model.tokenizer.backend_tokenizer.to_str(), n_vocab=model.size, eos_token=EOS)
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(arguments["grammar"]), log_level=0)
    assert not matcher.get_error()
    markers = model.thoughts.reasoning
    begun = "" if state == "open" else markers.start
    ids = [*model.ids(begun), *model.ids("it is"), *model.ids(markers.end), *model.ids(f"\n{document}")]
    assert matcher.deep_copy().try_consume_tokens(ids) == len(ids)
    wrong = [
        *model.ids(begun),
        *model.ids("it is"),
        *model.ids(markers.end),
        *model.ids("the"),
        *model.ids(markers.end),
    ]
    if has_marker_tokens or kind != "text or calls":  # spelled markers are text
        assert matcher.try_consume_tokens(wrong) < len(wrong)


def test_harmony_has_a_grammar_for_its_channels():
    from inference_server.text.reasoning.formats import FORMATS

    model = Model()
    thoughts = ModelThoughts(
        FORMATS["harmony"], PromptEncoder(model.tokenizer).decoder, model.grammars.literal, model.size, {EOS}
    )
    grammar = grammar_arguments(thoughts.constrain(model.grammars.json_schema(SCHEMA), "open").grammar)["grammar"]
    tokenizer = LLTokenizer(model.tokenizer.backend_tokenizer.to_str(), n_vocab=model.size, eos_token=EOS)
    assert not LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0).get_error()
