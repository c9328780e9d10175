"""Configurations from GGUF files: rotary positions, end tokens and head widths that transformers does not read."""

import math

import gguf
import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from inference_server.weights.gguf.config import end_tokens, read_model_config
from inference_server.weights.gguf.file import GgufFile
from tailrace_shared.config_errors import ConfigurationError
from tests.support.models.gguf_files import add_byte_level_tokenizer, add_tensor, finish

HEAD_DIM = 64


def file_with(tmp_path, *, tensors=(), **metadata):
    """Write a file with the metadata of a Llama, and `metadata`, whose keys have underscores instead of dots."""
    writer = gguf.GGUFWriter(tmp_path / "any.gguf", "llama")
    writer.add_name("any")
    writer.add_context_length(131072)
    writer.add_embedding_length(256)
    writer.add_block_count(1)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    add_byte_level_tokenizer(writer, 300)
    for key, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key.replace("__", "."), value)
    add_tensor(writer, "token_embd.weight", torch.zeros(300, 256))
    for name, values in dict(tensors).items():
        add_tensor(writer, name, values)
    finish(writer)
    return GgufFile(tmp_path / "any.gguf")


def llama3_factors(factor):
    """Return the divisors of frequencies as llama.cpp's conversion of a Llama 3.1 writes them."""
    factors = []
    for index in range(HEAD_DIM // 2):
        length = 2 * math.pi * 500000.0 ** (2 * index / HEAD_DIM)
        if length < 8192 / 4:
            factors.append(1.0)
        elif length > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / length - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors)


def test_positions_scaled_as_in_llama_3_are_recognised_by_their_factors(tmp_path):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = read_model_config(file_with(tmp_path, tensors={"rope_freqs.weight": llama3_factors(32.0)}))
    assert config.rope_parameters["rope_type"] == "llama3"
    plain = LlamaRotaryEmbedding(
        LlamaConfig(head_dim=HEAD_DIM, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    )
    assert torch.allclose(LlamaRotaryEmbedding(config).inv_freq, plain.inv_freq / llama3_factors(32.0), rtol=1e-4)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


def test_other_factors_of_positions_are_refused(tmp_path):
    file = file_with(tmp_path, tensors={"rope_freqs.weight": torch.linspace(1, 3, HEAD_DIM // 2)})
    with pytest.raises(
        ConfigurationError, match="^cannot load any.gguf: the factors of its rotary positions are not those"
    ):
        read_model_config(file)


def test_yarn_is_read_with_its_original_length(tmp_path):
    values = {"type": "yarn", "factor": 4.0, "original_context_length": 32768}
    config = read_model_config(
        file_with(tmp_path, **{f"llama__rope__scaling__{key}": value for key, value in values.items()})
    )
    assert config.rope_parameters == {
        "rope_theta": 500000.0,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }


@pytest.mark.parametrize(
    "metadata",
    [{"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0}, {"llama__rope__scale_linear": 2.0}],
    ids=["new", "old"],
)
def test_linear_scaling_is_read(tmp_path, metadata):
    config = read_model_config(file_with(tmp_path, **metadata))
    assert (config.rope_parameters["rope_type"], config.rope_parameters["factor"]) == ("linear", 2.0)


def test_positions_without_scaling_stay_as_they_are(tmp_path):
    assert read_model_config(file_with(tmp_path)).rope_parameters["rope_type"] == "default"
    ones = {"rope_freqs.weight": torch.ones(HEAD_DIM // 2)}
    assert read_model_config(file_with(tmp_path, tensors=ones)).rope_parameters["rope_type"] == "default"


def test_a_turns_end_also_ends_a_reply(tmp_path):
    assert end_tokens(file_with(tmp_path)) == [2]
    assert end_tokens(file_with(tmp_path, tokenizer__ggml__eot_token_id=7)) == [2, 7]
