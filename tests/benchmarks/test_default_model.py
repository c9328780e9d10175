"""The model of the benchmarks, written for peers that do not read GGUF files."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.default_model import write_safetensors
from tests.support.models.gguf_files import write_gguf


def test_transformers_loads_the_safetensors_of_a_gguf_file_with_its_weights_and_tokenizer(tiny_model, tmp_path):
    original = AutoModelForCausalLM.from_pretrained(tiny_model("llama-2"))
    file = write_gguf(tmp_path / "tiny.gguf", original)
    write_safetensors(file, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    weights = original.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name].bfloat16()) for name, value in loaded.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer("a cab")["input_ids"]) == "a cab"
