"""Sizes of models from their configuration files and GGUF headers."""

import json

import pytest
from transformers import AutoConfig

from inference_server.weights.gguf.header import read_header
from inference_server.weights.shape import read_shape
from inference_server.weights.sizes import model_sizes
from tailrace_shared.config_errors import ConfigurationError
from tests.support.models.tiny_models import ARCHITECTURES


@pytest.fixture
def gguf_file(tmp_path):
    """A file with two layers of Q8_0 weights, an embedding, a norm, and arrays in its metadata."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(512)
    writer.add_token_list(["a", "bc", "def"])
    writer.add_token_scores([0.5, 1.0, 2.0])
    writer.add_tensor("token_embd.weight", np.zeros((100, 64), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float32))
    for layer in range(2):
        packed = np.zeros((64, 68), np.uint8)  # 34 bytes hold 32 weights
        writer.add_tensor(f"blk.{layer}.attn_q.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_estimate_is_the_count_of_transformers(tiny_model, architecture):
    folder = tiny_model(architecture)
    shape, exact = read_shape(folder), model_sizes(AutoConfig.from_pretrained(folder))
    assert (shape.linear_weights, shape.kv_width, shape.num_layers) == (
        exact.linear_weights,
        exact.kv_width,
        exact.num_layers,
    )
    head = shape.vocab_weights * (1 if shape.is_tied else 2)
    assert head <= exact.other_weights < 1.1 * head
    assert shape.max_tokens == ARCHITECTURES[architecture].max_position_embeddings


def test_a_gguf_header_has_the_sizes(gguf_file):
    shape = read_shape(gguf_file)
    assert (shape.linear_weights, shape.vocab_weights, shape.is_tied) == (2 * 64 * 64, 6400, True)
    assert (shape.kv_width, shape.num_layers, shape.max_tokens) == (2 * 2 * 16, 2, 512)
    assert shape.is_file


@pytest.mark.parametrize("size", [0, 3, 10, 60, 200])
def test_a_cut_header_is_one_sentence(gguf_file, size):
    gguf_file.write_bytes(gguf_file.read_bytes()[:size])
    with pytest.raises(
        ConfigurationError, match=r"tiny\.gguf is (not a GGUF file|truncated or damaged: download the file again)"
    ):
        read_header(gguf_file)


@pytest.mark.parametrize("text", ["{}", '{"hidden_size": 3}'])
def test_an_unusual_configuration_has_no_sizes(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert read_shape(tmp_path) is None


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"config\.json is not JSON"):
        read_shape(tmp_path)


def test_a_configuration_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match=r"config\.json is not a JSON object"):
        read_shape(tmp_path)


def test_bits_of_quantised_checkpoints_are_found(tiny_model, tmp_path):
    text = (tiny_model("llama-2") / "config.json").read_text().rstrip().removesuffix("}")
    compressed = '{"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}}}'
    awq, fp8 = '{"quant_method": "awq", "bits": 4}', '{"quant_method": "fp8"}'
    for quantization, bits in ((awq, 4), (fp8, 8), (compressed, 4)):
        (tmp_path / "config.json").write_text(f'{text}, "quantization_config": {quantization}}}')
        assert read_shape(tmp_path).quantized_bits == bits


def test_scaled_positions_extend_the_window(tiny_model, tmp_path):
    text = (tiny_model("llama-2") / "config.json").read_text()
    config = json.loads(text)
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}))
    assert read_shape(tmp_path).max_tokens == 2 * 4096
    shape = read_shape(tiny_model("llama-2"))
    assert (shape.window(None), shape.window({"rope_type": "yarn", "factor": 4.0})) == (4096, 4 * 4096)
