"""Checks at startup: complete weights, supported attention and rotary positions."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Llama4TextConfig, MixtralConfig, Phi3Config

from inference_server.serving.catalog import builtin_template
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import collect, entry, hosting, request
from tests.support.models.tiny_models import VOCAB_SIZE, sentencepiece_tokenizer

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write(config, folder):
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    sentencepiece_tokenizer().save_pretrained(folder)
    return folder


async def test_a_missing_tensor_is_named(tiny_model, tmp_path):
    folder = write(AutoModelForCausalLM.from_pretrained(tiny_model("llama-2")).config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"lacks 1 tensors .*model\.layers\.1\.mlp\.up_proj\.weight"):
        async with hosting(entry(folder)):
            pass


async def test_weights_that_compute_nan_stop_the_start_in_one_sentence(tiny_model, tmp_path):
    folder = write(AutoModelForCausalLM.from_pretrained(tiny_model("llama-2")).config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match="tiny .* cannot be served: "):
        async with hosting(entry(folder)):
            pass


class NoMemory:
    """Builder of an engine whose model does not fit into the memory."""

    @staticmethod
    def load(key, device, settings):
        raise MemoryError


async def test_an_error_without_a_message_is_named(tiny_model):
    with pytest.raises(ConfigurationError, match="cannot be served: MemoryError; if memory is short, lower"):
        async with hosting(entry(tiny_model("llama-2")), builder=NoMemory):
            pass


async def test_chunked_attention_is_refused_by_name(tmp_path):
    config = Llama4TextConfig(
        **SIZES, intermediate_size_mlp=64, head_dim=16, num_local_experts=2, attention_chunk_size=24
    )
    with pytest.raises(ConfigurationError, match="tiny .* cannot be served: .*chunked"):
        async with hosting(entry(write(config, tmp_path))):
            pass


async def test_longrope_reaches_beyond_its_original_length(tmp_path):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 128,
    }
    config = Phi3Config(
        **SIZES, max_position_embeddings=512, original_max_position_embeddings=128, rope_parameters=rope
    )
    async with hosting(entry(write(config, tmp_path), context_length=300, sequence_length=100)) as models:
        assert models["tiny"].window == 400


async def test_a_mixture_of_experts_is_served(tmp_path):
    config = MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1)
    async with hosting(entry(write(config, tmp_path))) as models:
        reply = await collect(models["tiny"], request(torch.arange(3, 20).tolist(), max_tokens=5))
    assert reply.completed.usage.completion_tokens == 5


async def test_a_fallback_to_llama_2s_template_is_logged(tiny_model, caplog):
    async with hosting(entry(tiny_model("llama-2"))) as models:
        assert models["tiny"].prompts.has_chat_template
    assert "tiny has no chat template: Llama 2's is used, with [INST]" in caplog.text
    assert "set chat_template in the catalog" in caplog.text


async def test_a_chosen_template_is_not_logged(tiny_model, caplog):
    async with hosting(entry(tiny_model("llama-2"), chat_template=builtin_template("llama-2"))):
        pass
    assert "chat template" not in caplog.text
