"""Copies of tokenizers that share the vocabulary."""

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from inference_server.text.tokenizer_copy import copy_tokenizer
from tests.support.models.tiny_models import sentencepiece_tokenizer


def with_a_gap():
    """Returns a tokenizer whose only added token has an id behind unused ones."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_tokens(["<x>", "<y>"])
    return Tokenizer.from_str(tokenizer.to_str().replace('"id":2', '"id":7').replace('"id":3', '"id":9'))


@pytest.mark.parametrize("make", [lambda: sentencepiece_tokenizer().backend_tokenizer, with_a_gap])
def test_a_copy_is_like_its_original(make):
    original = make()
    copied = copy_tokenizer(original)
    assert copied.to_str() == original.to_str()
    text = "hello <s> a <x> b <y> there"
    assert copied.encode(text).ids == original.encode(text).ids


def test_changes_of_a_copy_do_not_reach_the_original():
    original = sentencepiece_tokenizer().backend_tokenizer
    before = original.to_str()
    copied = copy_tokenizer(original)
    copied.encode_special_tokens = True
    copied.add_tokens([AddedToken("<mark>", normalized=False)])
    copied.enable_truncation(3)
    assert original.to_str() == before
    assert not original.encode_special_tokens
    assert len(original.encode("hello there hello there").ids) > 3


def test_a_copy_has_neither_truncation_nor_padding():
    original = sentencepiece_tokenizer().backend_tokenizer
    original.enable_truncation(2)
    original.enable_padding(length=50)
    assert 2 < len(copy_tokenizer(original).encode("hello there hello").ids) < 50
