"""Weights from a GGUF file."""

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inference_server.weights.download import local_folder
from inference_server.weights.loader import silence_libraries
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from tests.inference_server.weights.loading import load, logits


def write_gguf(path: Path, model) -> Path:
    """Write the tiny Llama as llama.cpp does: rows of queries and keys reordered, a byte-level tokenizer."""
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    words = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), "ab"]
    words += [f"word{index}" for index in range(config.vocab_size - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * (len(words) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[-1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tiny_model, tmp_path_factory):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-2"))
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


def converted(cache_dir):
    return sorted(path.name for path in cache_dir.glob("converted/*"))


def test_a_gguf_file_has_the_logits_of_its_source_model(gguf_file, tiny_model, tmp_path):
    loaded = load(Weights(path=gguf_file), tmp_path)
    original = load(Weights(path=tiny_model("llama-2")), tmp_path)
    assert torch.allclose(logits(loaded.model), logits(original.model), atol=1e-4)
    assert loaded.tokenizer.decode(loaded.tokenizer("a cab 🙂")["input_ids"]) == "a cab 🙂"
    assert len(converted(tmp_path)) == 1


def test_a_gguf_file_is_converted_once(gguf_file, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = local_folder(Weights(path=gguf_file), tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert folder.parent == tmp_path / "converted"
    assert "converting tiny.gguf (once; " in caplog.text
    caplog.clear()
    assert local_folder(Weights(path=gguf_file), tmp_path) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert caplog.text == ""


def test_a_gguf_file_that_changed_is_converted_again(gguf_file, tmp_path):
    copy = Path(shutil.copy2(gguf_file, tmp_path / "tiny.gguf"))
    first = local_folder(Weights(path=copy), tmp_path)
    os.utime(copy, ns=(1, 1))
    assert local_folder(Weights(path=copy), tmp_path) != first
    assert len(converted(tmp_path)) == 2


class InterruptedWhileSaving:
    """A fake model that writes half of its files and is then interrupted."""

    @staticmethod
    def from_pretrained(*_, **__):
        return InterruptedWhileSaving()

    def save_pretrained(self, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt


def test_an_interrupted_conversion_leaves_no_folder_behind(gguf_file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AutoModelForCausalLM, "from_pretrained", InterruptedWhileSaving.from_pretrained)
        local_folder(Weights(path=gguf_file), tmp_path)
    assert converted(tmp_path) == []
    assert (local_folder(Weights(path=gguf_file), tmp_path) / "model.safetensors").is_file()


def test_two_parallel_conversions_get_the_same_folder(gguf_file, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: local_folder(Weights(path=gguf_file), tmp_path), range(2))
    assert first == second
    assert converted(tmp_path) == [first.name]


def test_a_truncated_gguf_file_is_reported_as_truncated(gguf_file, tmp_path):
    path = tmp_path / "tiny.gguf"
    content = gguf_file.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(
        ConfigurationError, match=r"^cannot load tiny.gguf: the file is cut: it has \S+ kB of \S+ kB: download"
    ):
        load(Weights(path=path), tmp_path)


def test_a_cache_that_cannot_be_written_is_reported_with_its_variable(gguf_file, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    with pytest.raises(ConfigurationError, match="set TAILRACE_CACHE_DIR"):
        local_folder(Weights(path=gguf_file), tmp_path / "cache")


def test_converting_draws_no_progress_bar(gguf_file, tmp_path, capfd):
    silence_libraries()
    local_folder(Weights(path=gguf_file), tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"not GGUF", b"GGUF\3\0\0\0" + bytes(16)], ids=["other", "empty"])
def test_a_file_that_is_not_gguf_is_named_and_leaves_nothing_behind(tmp_path, content):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"^(cannot load )?tiny.gguf"):
        load(Weights(path=path), tmp_path)
    assert converted(tmp_path) == []
