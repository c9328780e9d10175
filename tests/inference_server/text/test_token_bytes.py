"""The bytes of single tokens: joined, they are the text's own bytes."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from inference_server.text.token_bytes import TokenBytes
from tests.support.fakes import default_prompts, llama_prompts

TEXTS = [
    "where is the program",
    "  two\n\n\tlines ",
    "naïve — 日本語 🙂👍🏽",
    "e\u0301 हि ᚠ",
    "\x00\x7f\ufeff",
    "<0x0A> <s> Ġ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_byte_level_tokens_are_those_of_the_text(text):
    prompts = default_prompts()
    assert b"".join(map(prompts.decoder.token_bytes, prompts.encode_text(text))) == text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_sentencepiece_tokens_are_those_of_the_text(text):
    prompts = llama_prompts()
    assert b"".join(map(prompts.decoder.token_bytes, prompts.encode_text(text))) == b" " + text.encode()


@pytest.mark.parametrize("prompts", [default_prompts, llama_prompts])
def test_a_token_of_a_part_of_a_character_has_its_byte(prompts):
    single = [prompts().decoder.token_bytes(token_id) for token_id in prompts().encode_text("🙂")]
    assert any(b"\x80" <= piece < b"\xf8" and len(piece) < 4 for piece in single)
    with pytest.raises(UnicodeDecodeError):
        single[-1].decode()


def test_every_token_except_control_tokens_has_bytes():
    tokenizer = llama_prompts().decoder.token_bytes._tokenizer
    without = [i for i in range(tokenizer.get_vocab_size()) if not llama_prompts().decoder.token_bytes(i)]
    assert without == [0, 1, 2]


@pytest.mark.parametrize("token_id", [0, 1, 2])
def test_a_control_token_has_no_bytes(token_id):
    assert default_prompts().decoder.token_bytes(token_id) == b""


@pytest.mark.parametrize("prompts", [default_prompts, llama_prompts])
def test_an_id_beyond_the_vocabulary_has_no_bytes(prompts):
    # The output layer of many models has more rows than there are tokens.
    assert prompts().decoder.token_bytes(10_000_000) == b""


@pytest.mark.parametrize("content", ["    ", "<｜User｜>"])
def test_an_added_token_that_is_text_has_the_bytes_of_its_text(content):
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(content, normalized=False)])
    (token_id,) = tokenizer.encode(content).ids
    assert tokenizer.decode([token_id]) == content
    assert TokenBytes(tokenizer)(token_id) == content.encode()
