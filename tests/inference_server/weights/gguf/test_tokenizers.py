"""Tokenizers from GGUF files: the ids of the model's own tokenizer."""

import io
import json
import logging

import gguf
import pytest
import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from inference_server.weights.gguf.file import GgufFile
from inference_server.weights.gguf.tokenizer import read_gguf_tokenizer
from tests.support.models.gguf_files import add_byte_level_tokenizer, add_tensor, finish

TEXTS = [
    "The model answers questions, and it's quick: 12 345 tokens in 2026!",
    "  two  spaces,   12 and\n\n  a tab\t3 4  \n",
    "Grüße aus Köln, 東京 и Москва 🙂🙃 'll 've don't DON'T",
    "def f(x):\n    return x**2 + 1.5e-3  # 100%\r\n",
    "<s>control</s> and <unk>",
    "",
    " ",
    "a" * 50 + "1234567890",
]
CORPUS = [*TEXTS, "the the and and in in ing ing 12 34 56   return return   questions tokens model answer"] * 4
# The splits of Qwen2's own tokenizer.json.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(*splits):
    """Return a tokenizer whose byte-level vocabulary was learned with these splits of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def write(path, tokenizer, pre):
    """Write a byte-level tokenizer as llama.cpp's conversion does."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("any")
    model_json = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model_json["vocab"], key=model_json["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    types = [3 if token in ("<unk>", "<s>", "</s>") else 1 for token in tokens]
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in model_json["merges"]])
    writer.add_add_bos_token(False)
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_unk_token_id(tokens.index("<unk>"))
    add_tensor(writer, "token_embd.weight", torch.zeros(len(tokens), 32))
    finish(writer)
    return GgufFile(path)


DIGITS = pre_tokenizers.Digits(individual_digits=True)
PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("pre", "splits"),
    [
        ("smollm", [DIGITS, GPT2]),
        ("gpt-2", [GPT2]),
        ("qwen2", [pre_tokenizers.Split(Regex(QWEN2), "isolated"), PLAIN]),
        ("stablelm2", [pre_tokenizers.Split(Regex(QWEN2), "isolated"), PLAIN]),
    ],
)
def test_a_byte_level_vocabulary_gives_the_ids_of_the_original(tmp_path, pre, splits):
    original = byte_level(*splits)
    found = read_gguf_tokenizer(write(tmp_path / "any.gguf", original, pre))
    for text in TEXTS:
        assert found(text)["input_ids"] == original(text)["input_ids"], text
    found.save_pretrained(tmp_path)
    kept = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert [kept(text)["input_ids"] for text in TEXTS] == [original(text)["input_ids"] for text in TEXTS]


def test_a_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(tmp_path):
    """The vocabulary is trained as that of Llama 2: byte fallback, a leading space, and spaces kept."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=trained,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    original = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = range(original.get_piece_size())
    writer = gguf.GGUFWriter(tmp_path / "any.gguf", "llama")
    writer.add_name("any")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([original.id_to_piece(piece) for piece in pieces])
    writer.add_token_scores([original.get_score(piece) for piece in pieces])
    kinds = [(original.is_unknown, 2), (original.is_control, 3), (original.is_byte, 6)]
    writer.add_token_types([next((kind for is_kind, kind in kinds if is_kind(piece)), 1) for piece in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    add_tensor(writer, "token_embd.weight", torch.zeros(len(pieces), 32))
    finish(writer)
    found = read_gguf_tokenizer(GgufFile(tmp_path / "any.gguf"))
    for text in TEXTS:
        # sentencepiece does not find control tokens in a text. It adds a space before another one, and Llama 2 does not.
        if "<s>" not in text and not text.startswith(" "):
            assert found(text)["input_ids"] == [1, *original.encode(text)], text


def test_an_unknown_vocabulary_is_reported_with_its_name(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    writer = gguf.GGUFWriter(tmp_path / "any.gguf", "llama")
    writer.add_name("any")
    add_byte_level_tokenizer(writer, 300, pre="newer-than-this")
    add_tensor(writer, "token_embd.weight", torch.zeros(300, 32))
    finish(writer)
    read_gguf_tokenizer(GgufFile(tmp_path / "any.gguf"))
    assert "the vocabulary type 'newer-than-this' is unknown" in caplog.text
