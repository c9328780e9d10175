"""Checkpoints whose weights are quantised: FP8, int8, AWQ, GPTQ and compressed-tensors."""

from functools import partial

import pytest
import torch

from inference_server.cpu.linear.integer_weights import int4_weights, int8_weights
from inference_server.weights.loader import load_model
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from tests.inference_server.weights.loading import CPU
from tests.support.models import quantized_checkpoints as checkpoints
from tests.support.models.tiny_models import write_model

COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}}
PACKED = COMPRESSED | {"format": "pack-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "checkpoint_format": "gptq"}
MIXED = torch.arange(64).flip(0).view(2, 32).T.reshape(-1)

BYTES = {
    "fp8 blocks": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, checkpoints.fp8_blocks),
    "fp8 channels": (COMPRESSED, checkpoints.fp8_channels),
    "fp8 tensor": ({"quant_method": "modelopt", "quant_algo": "FP8"}, checkpoints.fp8_tensor),
    "int8 channels": (COMPRESSED | {"format": "int-quantized"}, checkpoints.int8_channels),
}
CODES = {
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm", "group_size": 64}, checkpoints.awq),
    "gptq": (GPTQ, checkpoints.gptq),
    "gptq v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, partial(checkpoints.gptq, offset=0)),
    "packed": (PACKED, checkpoints.packed),
    "packed symmetric": (PACKED, partial(checkpoints.packed, is_symmetric=True)),
}


@pytest.fixture
def load(tmp_path):
    """Returns a function that quantises a tiny model, loads it, and returns the model and the represented weights."""

    def quantized(quantization, make, precision="float32"):
        folder = write_model(tmp_path / "model", "llama-2")
        represented = checkpoints.quantize(folder, quantization, make)
        options = {"device": CPU, "cache_dir": tmp_path, "attention_name": "sdpa"}
        return load_model(Weights(path=folder), precision, **options), represented

    return quantized


@pytest.mark.parametrize("name", BYTES | CODES)
def test_the_weights_are_those_that_the_checkpoint_represents(load, name):
    loaded, represented = load(*(BYTES | CODES)[name])
    assert len(represented) == 3 * 7
    for layer, weight in represented.items():
        torch.testing.assert_close(loaded.model.get_submodule(layer).weight.data, weight, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", CODES)
def test_int4_keeps_the_codes_of_the_checkpoint(load, name):
    loaded, represented = load(*CODES[name], "int4")
    for layer, weight in represented.items():
        codes = int4_weights([loaded.model.get_submodule(layer)])
        torch.testing.assert_close(codes.dequantize(), weight, rtol=0, atol=2e-3)


def test_groups_of_permuted_inputs_are_read(load):
    def mixed(weight):
        return checkpoints.gptq(weight, permutation=torch.cat([MIXED, MIXED + 64])[: weight.shape[1]].roll(32))

    loaded, represented = load(GPTQ | {"desc_act": True}, mixed)
    for layer, weight in represented.items():
        torch.testing.assert_close(loaded.model.get_submodule(layer).weight.data, weight, rtol=0, atol=2e-3)


def test_bitsandbytes_quantises_what_the_checkpoint_represents(load):
    loaded, represented = load(*BYTES["fp8 channels"], "bitsandbytes-int8")
    for layer, weight in represented.items():
        found = int8_weights([loaded.model.get_submodule(layer)]).dequantize()
        assert ((found - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127).all()


def test_the_generation_config_is_kept(load):
    assert load(*CODES["awq"])[0].model.generation_config.eos_token_id == 2


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ({"quant_method": "gptq", "bits": 3}, "gptq (bits 3)"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq (bits 4, version gemv)"),
        ({"quant_method": "hqq"}, "hqq"),
        (COMPRESSED | {"format": "nvfp4-pack-quantized"}, "compressed-tensors (nvfp4-pack-quantized)"),
    ],
)
def test_another_format_is_refused_by_name(load, quantization, name):
    with pytest.raises(ConfigurationError, match="does not read") as raised:
        load(quantization, checkpoints.int8_channels)
    assert name in str(raised.value)


def test_a_missing_part_of_a_layer_is_named(load):
    def without_zeros(weight):
        parts, represented = checkpoints.awq(weight)
        return {name: tensor for name, tensor in parts.items() if name != "qzeros"}, represented

    with pytest.raises(ConfigurationError, match=r"layers\.0\.mlp\.down_proj lacks its tensor qzeros"):
        load(CODES["awq"][0], without_zeros)
