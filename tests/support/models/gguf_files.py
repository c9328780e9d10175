"""Writes tiny models as GGUF files, as llama.cpp does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers.convert_slow_tokenizer import bytes_to_unicode

_ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gemma2": "GEMMA2"}
_INTERLEAVED = ("q_proj.weight", "k_proj.weight")
QUANTISED = ("_proj.weight", "lm_head.weight", "embed_tokens.weight")


def write_gguf(
    path: Path,
    model: Any,
    *,
    kind: str = "F32",
    metadata: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    left_out: str = "none",
) -> Path:
    """Write a model with a byte-level tokenizer. Returns `path`.

    Args:
        path: The file.
        model: A transformers model of an architecture above.
        kind: Number format of matrices, by GGML's name.
        metadata: Adds metadata.
        left_out: Tensors whose name contains this text are not written.
    """
    config = model.config
    architecture = _ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture.lower())
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_rope_freq_base(config.rope_parameters.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_byte_level_tokenizer(writer, config.vocab_size)
    metadata(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if left_out in name or name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "LLAMA" and name.endswith(_INTERLEAVED):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[-1]).swapaxes(1, 2).reshape(tensor.shape)
        if architecture == "GEMMA2" and name.endswith("norm.weight"):
            tensor = tensor + 1
        add_tensor(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), tensor, kind)
    finish(writer)
    return path


def add_byte_level_tokenizer(writer: gguf.GGUFWriter, vocab_size: int, pre: str = "smollm") -> None:
    """Add a tokenizer with all bytes and one merge."""
    words = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), "ab"]
    words += [f"word{index}" for index in range(vocab_size - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * (len(words) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, kind: str = "F32") -> None:
    """Add a tensor; matrices in the number format `kind`."""
    values, wanted = tensor.float().contiguous().numpy(), GGMLQuantizationType[kind]
    if values.ndim < 2 or kind == "F32":
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, wanted), raw_dtype=wanted)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(kind: str, num_rows: int, num_blocks: int, seed: int = 0) -> np.ndarray:
    """Return random rows in a number format, (num_rows, bytes) uint8. The float16 numbers of a block are small."""
    size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (num_rows * num_blocks, size), dtype=np.uint8)
    for place in _HALVES[kind]:
        halves = generator.normal(0, 0.01, num_rows * num_blocks).astype(np.float16)
        blocks[:, place : place + 2] = halves[:, None].view(np.uint8)
    return blocks.reshape(num_rows, -1)


# Places of the float16 numbers in the blocks of a format.
_HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}
