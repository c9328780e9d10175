"""Writes tiny randomly initialised models with real tokenizers to a folder, in the hub's layout.

The weights are random but fixed by a seed. Their spread is large enough that greedy replies vary from prompt to prompt.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

VOCAB_SIZE = 403  # tokens that the trainer below finds in _WORDS, and 256 byte tokens

_WORDS = (
    "the program where is new york a city in north east of united states and it was built by many people over time "
    "an answer comes word by word so that nobody waits for the end of a long reply hello world this is text 1 2 3 "
)

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}

ARCHITECTURES: dict[str, PreTrainedConfig] = {
    # Llama 2: a window of 4096, and keys for every head.
    "llama-2": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}, max_position_embeddings=4096),
    # Wide enough for the tile registers, which process 32 values of a head or 64 inputs of a product together.
    "llama-2-heads-of-32": LlamaConfig(**{**SIZES, "hidden_size": 128}, max_position_embeddings=4096),
    "llama-3": LlamaConfig(
        **SIZES,
        max_position_embeddings=8192,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
    "mistral": MistralConfig(**SIZES, max_position_embeddings=4096, sliding_window=24, head_dim=16),
    "qwen-2": Qwen2Config(**SIZES, max_position_embeddings=4096),
    "qwen-3": Qwen3Config(**SIZES, max_position_embeddings=4096, head_dim=32),
    # Layers that rotate and layers that ignore positions. Heads are wide enough for the prefill attention kernel.
    "smollm-3": SmolLM3Config(
        **{**SIZES, "hidden_size": 128},
        max_position_embeddings=4096,
        no_rope_layers=[1, 0, 1],
        use_sliding_window=False,
    ),
    # Stacked projections.
    "phi-3": Phi3Config(**{**SIZES, "hidden_size": 128}, max_position_embeddings=4096),
    # Factors on embeddings, scores, residuals and logits.
    "granite": GraniteConfig(
        **{**SIZES, "hidden_size": 128},
        max_position_embeddings=4096,
        embedding_multiplier=12.0,
        attention_multiplier=0.1,
        residual_multiplier=0.22,
        logits_scaling=8.0,
    ),
    # Soft-capped scores, and a sliding window in every other layer.
    "gemma-2": Gemma2Config(
        **SIZES,
        max_position_embeddings=4096,
        head_dim=16,
        sliding_window=24,
        attn_logit_softcapping=20.0,
        final_logit_softcapping=30.0,
        query_pre_attn_scalar=16,
    ),
}


def write_model(folder: Path, architecture: str, *, seed: int = 0) -> Path:
    """Write a model folder with config, safetensors and the SentencePiece-style tokenizer. Returns `folder`."""
    return write_config(folder, ARCHITECTURES[architecture], seed=seed)


def write_config(folder: Path, config: PreTrainedConfig, *, seed: int = 0) -> Path:
    """Write a model with this configuration, whose vocabulary has VOCAB_SIZE tokens. Returns `folder`."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config)
    if not model.config.tie_word_embeddings:
        # Random bytes are not text. Their logits are 0, which is hardly ever the largest.
        model.get_output_embeddings().weight.data[: 3 + 256] = 0
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    sentencepiece_tokenizer().save_pretrained(folder)
    return folder


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of Llama 2's kind.

    A space is ▁, one is added in front, unknown characters become bytes, and <s> starts a text.
    """
    control = [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        limit_alphabet=64,
    )
    tokenizer.train_from_iterator([_WORDS] * 3, trainer)
    learned = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *bytes_])}
    for token in sorted(learned, key=lambda token: learned[token]):
        vocab.setdefault(token, len(vocab))
    tokenizer.model = models.BPE(
        vocab=vocab, merges=[tuple(merge) for merge in merges], byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(control)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
