"""A model is packed once; later starts read it unless something that determines its content has changed."""

import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from inference_server.attention.torch_attention import AttentionSpec
from inference_server.cpu.decoder_weights import DecoderWeights, LayerWeights, Rotary
from inference_server.cpu.linear.kernel_linear import LinearKind
from inference_server.cpu.linear.torch_backend import TorchBackend
from inference_server.kernels.isa import choice
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.precision import cache_dtype
from inference_server.settings.server import Settings
from inference_server.weights import packed_cache as packed
from inference_server.weights import prepare as prepare_module
from inference_server.weights.prepare import prepare
from inference_server.weights.source import Weights
from tests.support.fakes import llama_tokenizer
from tests.support.kernels.linears import OtherBackend
from tests.support.models.expert_models import write_expert_model

CPU = torch.device("cpu")


@pytest.fixture
def source(tiny_model):
    return tiny_model("llama-2-heads-of-32")


@pytest.fixture
def prepared(source, tmp_path):
    if choice.obstacle():
        pytest.skip("this CPU has no linear kernels")

    def make(precision="int4", **settings):
        return prepare(Weights(path=source), precision, CPU, Settings(cache_dir=tmp_path, **settings))

    return make


def logits(model, precision):
    runner = ModelRunner(model.model, num_blocks=20, cache_dtype=cache_dtype(precision))
    runner.probe()
    prompt = runner.prefill([PromptPiece([1, 2], 0, list(range(40)), wants_logits=True)]).clone()
    return prompt, runner.decode([NextToken([1, 2], 40, 7), NextToken([3], 0, 9)]).clone()


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "packed").iterdir())


@pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8", "int4"])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_packed_model_gives_the_same_bits_as_when_it_was_packed(prepared, precision, batch_invariant):
    first, second = (prepared(precision, batch_invariant=batch_invariant) for _ in range(2))
    for one, other in zip(logits(first, precision), logits(second, precision), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "precision"), [("mixtral", "int4"), ("qwen-3", "bitsandbytes-int8"), ("mixtral", "bfloat16")]
)
def test_experts_give_the_same_bits_as_when_they_were_packed(name, precision, tmp_path, caplog):
    if choice.obstacle():
        pytest.skip("this CPU has no linear kernels")
    write_expert_model(tmp_path / "model", name)
    weights, settings = Weights(path=tmp_path / "model"), Settings(cache_dir=tmp_path)
    with caplog.at_level(logging.INFO):
        first, second = (prepare(weights, precision, CPU, settings) for _ in range(2))
    assert caplog.text.count(" parameters in int") == (0 if precision == "bfloat16" else 2)
    assert len(folders(tmp_path)) == 1
    for found in (first, second):
        assert isinstance(found.model, DecoderWeights)
    for one, other in zip(logits(first, precision), logits(second, precision), strict=True):
        assert torch.equal(one, other)


def test_the_properties_and_the_tokenizer_are_those_of_the_source(prepared):
    first, second = prepared(), prepared()
    assert second.info == first.info
    assert second.num_bytes == first.num_bytes
    text = "hello <s> there"
    assert second.tokenizer(text)["input_ids"] == first.tokenizer(text)["input_ids"]
    assert second.tokenizer.chat_template == first.tokenizer.chat_template


def test_packed_weights_lie_in_one_block_at_every_start(prepared):
    for found in (prepared(), prepared()):
        tensors = [tensor for linear in found.model.linears for tensor in (linear.packed.weights, linear.packed.bias)]
        addresses = [tensor.data_ptr() for tensor in tensors]
        assert all(address % 64 == 0 for address in addresses)
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


def test_engines_of_the_same_model_share_the_tokenizer(prepared):
    for precision in ("int4", "bfloat16"):
        prepared(precision)  # packed by this call, read by the next one
    one, other = prepared("int4"), prepared("bfloat16")
    assert one.tokenizer is other.tokenizer


def test_a_second_start_does_not_import_the_models_of_transformers(prepared, source, tmp_path):
    prepared()
    program = f"""
import pathlib, sys, torch
from inference_server.weights.source import Weights
from inference_server.settings.server import Settings
from inference_server.weights.prepare import prepare
import inference_server.grpc_api.server
settings = Settings(cache_dir=pathlib.Path({str(tmp_path)!r}))
prepare(Weights(path=pathlib.Path({str(source)!r})), "int4", torch.device("cpu"), settings)
heavy = ("transformers.modeling_utils", "transformers.models.auto.modeling_auto", "transformers.models")
print(*(name for name in heavy if name in sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == ""


def test_a_changed_source_is_packed_again_and_the_old_one_removed(prepared, source, tmp_path):
    prepared()
    before = folders(tmp_path)
    os.utime(source / "config.json", (1, 1))
    prepared()
    after = folders(tmp_path)
    assert len(before) == len(after) == 1
    assert before != after


def test_precisions_and_batch_invariance_are_kept_apart(prepared, tmp_path):
    for precision in ("int4", "bfloat16"):
        prepared(precision)
    prepared("int4", batch_invariant=True)
    assert len(folders(tmp_path)) == 3


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_damaged_file_is_packed_again(prepared, tmp_path, content, caplog):
    caplog.set_level(logging.INFO)
    expected = logits(prepared(), "int4")
    (file,) = (tmp_path / "packed").glob("*/model.safetensors")
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    found = prepared()
    assert isinstance(found.model, DecoderWeights)
    assert "the packed model cannot be read" in caplog.text
    assert all(torch.equal(*pair) for pair in zip(expected, logits(found, "int4"), strict=True))
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_not_an_error(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "packed").write_text("in the way")
    assert isinstance(prepared().model, DecoderWeights)
    assert "not kept for the next start" in caplog.text


def test_a_tokenizer_that_saving_would_change_is_not_kept(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "is_same_tokenizer", lambda *_: False)
    prepared()
    assert folders(tmp_path) == []


def test_a_model_with_sliding_windows_is_not_packed_whole(tiny_model, tmp_path):
    settings = Settings(cache_dir=tmp_path)
    found = prepare(Weights(path=tiny_model("mistral")), "bfloat16", CPU, settings)
    assert not isinstance(found.model, DecoderWeights)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("architecture", ["qwen-3", "smollm-3", "granite"])
def test_norms_of_heads_positions_and_factors_are_kept(tiny_model, tmp_path, architecture):
    settings, weights = Settings(cache_dir=tmp_path), Weights(path=tiny_model(architecture))
    first, second = (prepare(weights, "bfloat16", CPU, settings) for _ in range(2))
    assert len(folders(tmp_path)) == 1
    assert all(torch.equal(*pair) for pair in zip(*(logits(each, "bfloat16") for each in (first, second)), strict=True))


def test_two_layouts_of_packed_weights_never_share_a_folder(source, tmp_path):
    class NextLayout(OtherBackend):
        layout_version = 8

    names = [
        packed.packed_folder(tmp_path, source, "int4", batch_invariant=False, backends=(backend,)).name
        for backend in (OtherBackend(), NextLayout(), TorchBackend())
    ]
    assert len(set(names)) == 3
    assert [name.rpartition("-")[0].partition(".")[2] for name in names] == ["other7", "other8", "torch1"]


def decoder_of_other_linears():
    """Returns random weights of one layer: 2 heads of 32, hidden size 64, MLP of 96."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    def linear(outputs, inputs, **kind):
        return OtherBackend().pack(tensor(outputs, inputs), None, LinearKind("bf16", **kind))

    layer = LayerWeights(
        input_norm=tensor(64),
        qkv=linear(192, 64),
        attention=AttentionSpec(0.25, sliding_window=17),
        output=linear(64, 64),
        post_norm=tensor(64),
        gate_up=linear(192, 64, is_gated=True),
        down=linear(64, 96, is_invariant=True),
    )
    rotary = Rotary(torch.rand(16, generator=generator), 0.5)
    return DecoderWeights(tensor(300, 64), rotary, [layer], tensor(64), linear(300, 64, is_head=True), 1e-5, 2, 2)


def test_packed_weights_of_any_layout_are_read_as_they_were_written(source, tmp_path):
    decoder, info = decoder_of_other_linears(), packed.ModelInfo("llama", 2048, [2])
    folder = packed.packed_folder(tmp_path, source, "bfloat16", batch_invariant=False, backends=(OtherBackend(),))
    packed.write(folder, decoder, info, llama_tokenizer())
    found, found_info, _ = packed.read(folder, (OtherBackend(),))
    assert found_info == info
    assert (found.eps, found.num_heads, found.rotary.scaling) == (1e-5, 2, 0.5)
    assert found.layers[0].attention == decoder.layers[0].attention
    assert found.num_bytes == decoder.num_bytes
    for one, other in zip(found.linears, decoder.linears, strict=True):
        assert (one.packed.layout, one.packed.kind, one.packed.shape) == (
            "other7",
            other.packed.kind,
            other.packed.shape,
        )
        assert torch.equal(one.packed.weights, other.packed.weights)
    with pytest.raises(packed.NoKernel, match="no kernel on this CPU reads the packed weights' layout other7"):
        packed.read(folder)
    assert folder.is_dir()


def test_folders_of_an_older_format_are_removed(source, tmp_path):
    folder = packed.packed_folder(tmp_path, source, "bfloat16", batch_invariant=False, backends=(OtherBackend(),))
    place = folder.name.partition("-")[0]
    old, others = f"{place}-bfloat16-0123456789abcdef", [f"{place}-int4-0123456789abcdef", f"{place}-bfloat16.x1-01"]
    for name in (old, *others):
        (folder.parent / name).mkdir(parents=True)
    packed.write(folder, decoder_of_other_linears(), packed.ModelInfo("llama", None, []), llama_tokenizer())
    assert folders(tmp_path) == sorted([folder.name, *others])


def test_of_two_servers_that_start_together_one_packs_and_the_other_reads(prepared, source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: prepared(), range(2))
    assert len(folders(tmp_path)) == 1
    assert caplog.messages.count(f"packing {source.name} as int4") == 1
    assert torch.equal(logits(first, "int4")[0], logits(second, "int4")[0])


def test_servers_that_have_waited_for_a_model_without_a_packed_form_load_it_together(
    tiny_model, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    loading = threading.Barrier(2, timeout=30)  # for the second and the third server
    has_begun, may_end = threading.Event(), threading.Event()
    order = iter(range(3))

    def load(*_):
        if next(order) == 0:
            has_begun.set()
            assert may_end.wait(30)
        else:
            loading.wait()
        return "loaded"

    monkeypatch.setattr(prepare_module, "_load_and_pack", load)
    weights, settings = Weights(path=tiny_model("llama-2")), Settings(cache_dir=tmp_path)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(prepare, weights, "int4", CPU, settings)
        assert has_begun.wait(30)
        others = [pool.submit(prepare, weights, "int4", CPU, settings) for _ in range(2)]
        while sum(message.startswith("waiting for another process") for message in caplog.messages) < 2:
            time.sleep(0.01)
        may_end.set()
        assert [each.result(60) for each in (first, *others)] == ["loaded"] * 3
