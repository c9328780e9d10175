"""Writes tiny randomly initialised embedding models with real tokenizers, as sentence-transformers lays them out."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast, Qwen3Config, XLMRobertaConfig

from tests.support.models.tiny_models import _WORDS

WIDTH = 64
_SIZES = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
_SPREAD = {"initializer_range": 0.3}
_MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
POOLINGS = {"bert": "cls", "xlm-roberta": "cls", "qwen3": "last"}


def write_encoder(
    folder: Path,
    kind: str,
    *,
    pooling: str | None = None,
    normalizes: bool = True,
    declares: bool = True,
    seed: int = 0,
) -> Path:
    """Write a model of a kind ("bert", "xlm-roberta" or "qwen3") with its tokenizer. Returns `folder`."""
    tokenizer = {"bert": _word_piece, "xlm-roberta": _unigram, "qwen3": _byte_level}[kind]()
    torch.manual_seed(seed)
    model: Any = AutoModel.from_config(_config(kind, len(tokenizer)))
    for name, parameter in model.named_parameters():
        if "bias" in name:  # transformers sets biases to zero, which would hide that one is missing
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if declares:
        _declare(folder, pooling or POOLINGS[kind], normalizes)
    return folder


def _config(kind: str, vocab_size: int) -> Any:
    sizes = {**_SIZES, **_SPREAD, "vocab_size": vocab_size}
    if kind == "bert":
        return BertConfig(**sizes, max_position_embeddings=128)
    if kind == "xlm-roberta":
        return XLMRobertaConfig(**sizes, max_position_embeddings=130, pad_token_id=1, type_vocab_size=1)
    return Qwen3Config(**sizes, num_key_value_heads=2, head_dim=32, max_position_embeddings=256)


def _declare(folder: Path, pooling: str, normalizes: bool) -> None:
    names = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": paths[name], "type": f"sentence_transformers.models.{name}"}
        for index, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 100, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    modes = {mode: name == pooling for name, mode in _MODES.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **modes}))


def _word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([_WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(20)  # as in all-MiniLM-L6-v2's file, where it is not meant either
    tokenizer.enable_padding()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def _unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([_WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|endoftext|>")
