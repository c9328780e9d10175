"""Weights from a folder: precision and error messages."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from transformers import AutoModelForCausalLM

from inference_server import precision
from inference_server.precision import activation_dtype, choose_device, resolve_precision
from inference_server.weights import loader
from inference_server.weights.download import naming_source
from inference_server.weights.loader import load_model
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from tests.inference_server.weights.loading import CPU, load, logits
from tests.support.fakes import llama_tokenizer

# Runs in a process of its own, because imports happen once.
READS = """
import sys
from inference_server.weights import loader
loader.read_models_folder_once()
read = set()
sys.addaudithook(lambda event, values: read.add(str(values[0])) if event == "open" else None)
import transformers.models
print(sum("transformers/models/" in name and name.endswith(".py") for name in read))
read.clear()
from transformers import LlamaConfig
print(LlamaConfig.model_type, any("transformers/models/llama/" in name for name in read))
"""


def test_the_start_does_not_read_the_models_of_transformers_twice():
    command = [sys.executable, "-c", READS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == ["0", "llama", "True"]  # the import of one model is counted


# Precision.


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_float16_on_a_cpu_becomes_a_faster_type(monkeypatch, has_bfloat16):
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: has_bfloat16)
    assert resolve_precision("float16", CPU) == ("bfloat16" if has_bfloat16 else "float32")
    assert resolve_precision("float16", torch.device("cuda")) == "float16"


def test_int4_on_a_gpu_becomes_16_bits():
    assert resolve_precision("int4", CPU) == "int4"
    assert resolve_precision("int4", torch.device("cuda")) == "float16"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bitsandbytes-int8"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_other_precisions_are_kept_everywhere(precision, device):
    assert resolve_precision(precision, torch.device(device)) == precision


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((10, 0), "bfloat16")])
def test_bfloat16_on_a_gpu_that_cannot_multiply_it_becomes_float16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert resolve_precision("bfloat16", torch.device("cuda")) == expected
    assert activation_dtype("bfloat16", torch.device("cuda")) == getattr(torch, expected)
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    assert activation_dtype("bitsandbytes-int8", torch.device("cuda")) == torch.float16


def test_weights_that_are_not_quantised_have_16_bits_if_fast(monkeypatch):
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: False)
    assert activation_dtype("bitsandbytes-int8", CPU) == torch.float32
    assert activation_dtype("bitsandbytes-int8", torch.device("cuda")) == torch.float16
    assert activation_dtype("int4", CPU) == torch.float32
    assert activation_dtype("int4", torch.device("cuda")) == torch.float16
    assert activation_dtype("bfloat16", CPU) == torch.bfloat16


def test_auto_takes_the_available_device_and_logs_a_missing_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ConfigurationError, match="TAILRACE_DEVICE=cuda"):
        choose_device("cuda")


def test_a_gpu_is_used_unless_the_cpu_is_wanted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == CPU


# Folders.


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_folder_is_loaded_as_it_is(tiny_model, tmp_path, precision):
    loaded = load(Weights(path=tiny_model("llama-2")), tmp_path, precision)
    assert (loaded.precision, str(loaded.model.dtype)) == (precision, f"torch.{precision}")
    assert not loaded.model.training
    assert len(loaded.tokenizer) == len(llama_tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_the_model_has_the_requested_attention(tiny_model, tmp_path):
    loaded = load_model(Weights(path=tiny_model("llama-2")), "float32", device=CPU, cache_dir=tmp_path)
    assert loaded.model.config._attn_implementation == loader.attention.NAME


def without(name):
    return lambda folder: (folder / name).unlink()


def with_content(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(without("config.json"), id="no config"),
        pytest.param(with_content("config.json", b"{"), id="broken config"),
        pytest.param(without("model.safetensors"), id="no weights"),
        pytest.param(without("tokenizer.json"), id="no tokenizer"),
        pytest.param(
            with_content("model.safetensors", b"half a file"),
            id="broken weights",
        ),
        pytest.param(
            with_content("tokenizer.json", b"{}"),
            id="broken tokenizer",
        ),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_named_in_one_sentence(tiny_model, tmp_path, harm):
    folder = shutil.copytree(tiny_model("llama-2"), tmp_path / "model")
    harm(folder)
    with pytest.raises(ConfigurationError, match="^cannot load model: .+") as caught:
        load(Weights(path=folder), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_named(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama-2"), tmp_path / "model")
    without("tokenizer.json")(folder)
    with pytest.raises(ConfigurationError, match=r"it has no tokenizer \(tokenizer.json or tokenizer.model\)"):
        load(Weights(path=folder), tmp_path)


def test_pickled_weights_are_not_loaded(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama-2"), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="model.safetensors"):
        load(Weights(path=folder), tmp_path)


def test_an_error_without_a_message_is_reported_as_well():
    with pytest.raises(ConfigurationError, match="cannot load weights"), naming_source(Weights(path=Path("weights"))):
        raise OSError


def test_an_int4_model_is_float32_with_plain_linears(tiny_model, tmp_path):
    loaded = load(Weights(path=tiny_model("llama-2")), tmp_path, "int4")
    assert (loaded.precision, loaded.model.dtype) == ("int4", torch.float32)
    assert type(loaded.model.lm_head) is torch.nn.Linear


# bitsandbytes, the library itself.


@pytest.fixture(scope="module")
def int8(tiny_model, tmp_path_factory):
    return load(Weights(path=tiny_model("llama-2")), tmp_path_factory.mktemp("int8"), "bitsandbytes-int8")


def test_int8_quantises_every_linear_layer_but_the_last(int8):
    linear = {name: layer for name, layer in int8.model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert int8.precision == "bitsandbytes-int8"
    assert len(linear) == 3 * 7 + 1
    assert not isinstance(linear.pop("lm_head"), Linear8bitLt)
    assert all(isinstance(layer, Linear8bitLt) for layer in linear.values())
    assert all(layer.weight.dtype == torch.int8 for layer in linear.values())


def test_torch_keeps_its_compiler_after_the_import_of_bitsandbytes():
    compiler = torch.compile
    loader._import_bitsandbytes_without_compiler()
    assert torch.compile is compiler


def test_int8_has_no_outlier_threshold_by_default(int8, tiny_model, tmp_path):
    asked = load(Weights(path=tiny_model("llama-2")), tmp_path, "bitsandbytes-int8", int8_threshold=6.0)
    for model, threshold in ((int8.model, 0.0), (asked.model, 6.0)):
        layers = [layer for layer in model.modules() if isinstance(layer, Linear8bitLt)]
        assert {layer.state.threshold for layer in layers} == {threshold}


def test_int8_logits_are_close_to_float32(int8, tiny_model, tmp_path):
    exact = logits(load(Weights(path=tiny_model("llama-2")), tmp_path).model)
    quantised = logits(int8.model)
    likeness = torch.nn.functional.cosine_similarity(exact, quantised, dim=-1)
    assert likeness.mean() > 0.97
    assert likeness.min() > 0.9
    assert likeness.max() < 0.99999  # it is quantised


def test_two_threads_that_load_together_leave_later_models_complete(tiny_model, tmp_path):
    weights = Weights(path=tiny_model("gemma-2"))  # its output head is its embedding

    def load_once(_: int) -> object:
        return load_model(weights, "float32", device=CPU, cache_dir=tmp_path)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(load_once, range(6)))
    model = load_once(0).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
