"""Weights from a folder, a GGUF file and a hub, their precision, and error messages."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import gguf
import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inference_server.serving.catalog import Weights
from inference_server.weights import loader
from inference_server.weights.loader import activation_dtype, choose_device, load_model, local_folder, resolve_precision
from tailrace_shared.config_errors import ConfigurationError
from tests.support.fakes import llama_tokenizer

CPU = torch.device("cpu")
PROMPT = torch.tensor([[1, 300, 290, 311, 270, 333, 280, 301]])


def load(weights, tmp_path, precision="float32", **options):
    """Load the model with an attention that needs no engine."""
    return load_model(weights, precision, device=CPU, cache_dir=tmp_path, attention_name="sdpa", **options)


@torch.inference_mode()
def logits(model):
    return model(PROMPT).logits[0].float()


# Precision.


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_float16_on_a_cpu_becomes_a_faster_type(monkeypatch, has_bfloat16):
    monkeypatch.setattr(loader, "cpu_multiplies_bfloat16", lambda: has_bfloat16)
    assert resolve_precision("float16", CPU) == ("bfloat16" if has_bfloat16 else "float32")
    assert resolve_precision("float16", torch.device("cuda")) == "float16"


def test_int4_on_a_gpu_becomes_16_bits():
    assert resolve_precision("int4", CPU) == "int4"
    assert resolve_precision("int4", torch.device("cuda")) == "float16"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bitsandbytes-int8"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_other_precisions_are_kept_everywhere(precision, device):
    assert resolve_precision(precision, torch.device(device)) == precision


def test_weights_that_are_not_quantised_have_16_bits_if_fast(monkeypatch):
    monkeypatch.setattr(loader, "cpu_multiplies_bfloat16", lambda: False)
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


def test_pickled_weights_are_not_loaded(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama-2"), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="model.safetensors"):
        load(Weights(path=folder), tmp_path)


def test_an_error_without_a_message_is_reported_as_well():
    with pytest.raises(ConfigurationError, match="cannot load weights"), loader._naming(Weights(path=Path("weights"))):
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


def test_int8_has_no_outlier_threshold_by_default(int8, tiny_model, tmp_path):
    asked = load(Weights(path=tiny_model("llama-2")), tmp_path, "bitsandbytes-int8", int8_threshold=6.0)
    for model, threshold in ((int8.model, 0.0), (asked.model, 6.0)):
        layers = [layer for layer in model.modules() if isinstance(layer, Linear8bitLt)]
        assert {layer.state.threshold for layer in layers} == {threshold}


def test_int8_answers_nearly_as_float32_does(int8, tiny_model, tmp_path):
    exact = logits(load(Weights(path=tiny_model("llama-2")), tmp_path).model)
    quantised = logits(int8.model)
    likeness = torch.nn.functional.cosine_similarity(exact, quantised, dim=-1)
    assert likeness.mean() > 0.97
    assert likeness.min() > 0.9
    assert likeness.max() < 0.99999  # it is quantised


# GGUF.


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
    return sorted(path.name for path in (cache_dir / "converted").iterdir())


def test_a_gguf_file_answers_like_its_source_model(gguf_file, tiny_model, tmp_path):
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


@pytest.mark.parametrize("content", [b"not GGUF", b"GGUF\3\0\0\0" + bytes(16)], ids=["other", "empty"])
def test_a_file_that_is_not_gguf_is_named_and_leaves_nothing_behind(tmp_path, content):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="^cannot load tiny.gguf: "):
        load(Weights(path=path), tmp_path)
    assert converted(tmp_path) == []


# A hub on this machine, read by a separate process, because huggingface_hub fixes its address at import.

COMMIT = "a" * 40
OUTCOMES = """
import json, logging, pathlib, sys, torch
from inference_server.serving.catalog import Weights
from tailrace_shared.config_errors import ConfigurationError
from inference_server.weights.loader import load_model, silence_libraries

silence_libraries()
for name in sys.argv[1:]:
    hub, _, revision = name.partition("@")
    weights = Weights(hub=hub, revision=revision or None)
    try:
        loaded = load_model(weights, "float32", device=torch.device("cpu"), cache_dir=pathlib.Path("unused"))
        outcome = f"loaded {loaded.model.num_parameters()} parameters, {len(loaded.tokenizer)} tokens"
    except ConfigurationError as error:
        outcome = str(error)
    except Exception as error:
        outcome = f"uncaught {type(error).__name__}"
    print(json.dumps([name, outcome]), flush=True)
"""


class HubHandler(BaseHTTPRequestHandler):
    """Answers as the hub does. A model's name is the error that it causes."""

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.paths.append(path)
        if "/missing/" in path:
            self.refuse(401, "RepoNotFound")
        elif "/gated-to-everybody/" in path or ("/gated/" in path and "/resolve/" in path):
            # A gated model: its files are listed, but a download is 401 without a token and 403 with one.
            self.refuse(401 if "/gated/" in path else 403, "GatedRepo")
        elif path.endswith("/revision/no-such"):
            self.refuse(404, "RevisionNotFound")
        elif "/breaks-off/" in path:
            self.close_connection = True
        elif path.startswith("/api/models/") and "/revision/" in path:
            self.answer(json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": []}).encode())
        elif "/tree/" in path:
            files = [*self.server.folder.iterdir(), Path(__file__)]  # a file that no server needs
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self.answer(json.dumps(entries).encode())
        elif "/resolve/" in path:
            self.answer((self.server.folder / path.rpartition("/")[2]).read_bytes(), etag=path.rpartition("/")[2])
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def answer(self, body, *, etag="x"):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Hub(ThreadingHTTPServer):
    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.folder = folder
        self.paths = []

    def client(self, home, *names, **environment):
        """Start a process that loads each model and prints the outcome."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        variables |= {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HOME": str(home), "NO_PROXY": "*"}
        variables |= {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-c", OUTCOMES, *names]
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def hubs(tiny_model, tmp_path_factory):
    """Run two hubs, the second for a process that must not send requests to it."""
    hubs = [Hub(tiny_model("llama-2")) for _ in range(2)]
    for hub in hubs:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hubs
    for hub in hubs:
        hub.shutdown()
        hub.server_close()


@pytest.fixture(scope="module", autouse=True)
def clients(hubs, tmp_path_factory):
    """Start the processes before this file's first test, because their imports take seconds."""
    online, offline = hubs
    home = tmp_path_factory.mktemp("hub")
    names = ["gated", "gated-to-everybody", "missing", "tiny@no-such", "breaks-off", "tiny"]
    clients = [
        online.client(home / "online", *(f"owner/{name}" for name in names), "no id at all"),
        offline.client(home / "offline", "owner/tiny", HF_HUB_OFFLINE="1"),
    ]
    yield clients
    for client in clients:
        client.kill()
        client.communicate()


@pytest.fixture(scope="module")
def outcomes(clients):
    """Return the outcomes by model name: online, offline."""
    outputs = [client.communicate(timeout=60) for client in clients]
    for client, (_, stderr) in zip(clients, outputs, strict=True):
        assert client.returncode == 0, stderr.decode()
    return [dict(json.loads(line) for line in stdout.splitlines()) for stdout, _ in outputs]


def test_a_model_is_loaded_from_the_hub(outcomes, hubs, tiny_model):
    num_parameters = AutoModelForCausalLM.from_pretrained(tiny_model("llama-2")).num_parameters()
    assert outcomes[0]["owner/tiny"] == f"loaded {num_parameters} parameters, {len(llama_tokenizer())} tokens"
    downloaded = {path.rpartition("/")[2] for path in hubs[0].paths if path.startswith("/owner/tiny/resolve/")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= downloaded
    assert Path(__file__).name not in downloaded


@pytest.mark.parametrize("name", ["owner/gated", "owner/gated-to-everybody"])
def test_a_gated_models_error_names_the_token(outcomes, name):
    assert outcomes[0][name] == (
        f"{name} is gated: accept its licence on the hub, then set HF_TOKEN to an access token of that account"
    )


def test_a_model_missing_on_the_hub_is_named(outcomes):
    assert outcomes[0]["owner/missing"].startswith("the hub has no model owner/missing, or it is private: ")
    assert outcomes[0]["owner/tiny@no-such"] == "owner/tiny has no revision 'no-such'"


def test_an_invalid_hub_id_is_named(outcomes):
    assert " no id at all" in outcomes[0]["no id at all"]
    assert ": Repo id must " in outcomes[0]["no id at all"]


def test_offline_sends_no_request_and_names_the_variable(outcomes, hubs):
    assert outcomes[1]["owner/tiny"].startswith("owner/tiny is not in the local cache")
    assert "unset HF_HUB_OFFLINE" in outcomes[1]["owner/tiny"]
    assert hubs[1].paths == []


def test_a_connection_that_breaks_off_is_reported_as_a_failed_download(outcomes):
    assert outcomes[0]["owner/breaks-off"].startswith("downloading owner/breaks-off failed: ")


# Progress.


def test_progress_logs_start_end_and_continuation(caplog):
    caplog.set_level(logging.INFO)
    with loader.progress("loading tiny", every_seconds=0.02):
        time.sleep(0.1)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "loading tiny"
    assert len(messages) >= 4
    assert set(messages[1:-1]) == {"… loading tiny: 0 s so far"}
    assert messages[-1].startswith("loading tiny: done in 0.")


def test_progress_of_a_short_task_is_two_lines(caplog):
    caplog.set_level(logging.INFO)
    with loader.progress("loading tiny"):
        pass
    assert [record.getMessage() for record in caplog.records] == ["loading tiny", "loading tiny: done in 0.0 s"]


def test_progress_of_a_failing_task_ends_without_done(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="broken"), loader.progress("loading tiny", every_seconds=0.02):
        raise ValueError("broken")
    time.sleep(0.06)
    assert [record.getMessage() for record in caplog.records] == ["loading tiny"]
