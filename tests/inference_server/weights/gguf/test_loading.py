"""Models in GGUF files: their weights, their cached files, and files that cannot be loaded."""

import logging
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Qwen2Config

from inference_server.kernels.isa.choice import chosen
from inference_server.settings.server import Settings
from inference_server.weights import packed_cache
from inference_server.weights.download import local_folder
from inference_server.weights.gguf.config import natural_precision
from inference_server.weights.gguf.file import GgufFile
from inference_server.weights.gguf.header import read_header
from inference_server.weights.loader import silence_libraries
from inference_server.weights.prepare import prepare
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from tests.inference_server.weights.loading import CPU, load, logits
from tests.support.models.gguf_files import add_byte_level_tokenizer, add_tensor, finish, write_gguf


@pytest.fixture(scope="module")
def models(tiny_model):
    """Return a function that loads a tiny model from safetensors."""
    return lambda architecture: AutoModelForCausalLM.from_pretrained(tiny_model(architecture))


@pytest.fixture(scope="module")
def wide_models(models):
    """Return models whose heads are wide enough for every instruction set: a Llama, and a Qwen with biases."""
    llama = models("llama-2-heads-of-32")
    sizes = {name: value for name, value in llama.config.to_dict().items() if name in _SIZES}
    qwen = AutoModelForCausalLM.from_config(Qwen2Config(**sizes))
    for name, parameter in qwen.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return {"llama": llama, "qwen": qwen}


@pytest.fixture(scope="module")
def gguf_file(models, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", models("llama-2"))


# The values of the model's first sizes, which a file does not contain.
_OF_GEMMA = {
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
NEEDS_KERNELS = pytest.mark.skipif(chosen() is None, reason="this CPU has no linear kernels")


def kept(cache_dir):
    return sorted(path.name for path in (cache_dir / "gguf").iterdir())


def plain(embedding):
    return embedding if isinstance(embedding, torch.Tensor) else embedding.plain()


def prepared(path, precision, cache_dir):
    return prepare(Weights(path=path), precision, CPU, Settings(device="cpu", cache_dir=cache_dir))


@pytest.mark.parametrize("architecture", ["llama-2", "qwen-2", "qwen-3", "gemma-2"])
def test_a_gguf_file_has_the_logits_of_its_source_model(models, architecture, tmp_path):
    original = models(architecture)
    if architecture == "gemma-2":  # a file does not contain the scale of scores
        original = type(original)(Gemma2Config(**original.config.to_dict() | _OF_GEMMA))
    path = write_gguf(tmp_path / "tiny.gguf", original)
    loaded = load(Weights(path=path), tmp_path, attention_name="eager")
    assert torch.allclose(logits(loaded.model), logits(original), atol=1e-3)
    assert loaded.tokenizer.decode(loaded.tokenizer("a cab 🙂")["input_ids"]) == "a cab 🙂"


@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("architecture", "kind", "precision"),
    [
        ("llama", "Q4_1", "bitsandbytes-int8"),
        ("llama", "Q4_1", "int4"),
        ("qwen", "Q8_0", "bfloat16"),
        ("qwen", "Q5_0", "bitsandbytes-int8"),
        ("llama", "F16", "bfloat16"),
    ],
)
def test_the_second_load_reads_the_same_weights_by_the_plan(wide_models, architecture, kind, precision, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", wide_models[architecture], kind=kind)
    first, second = (prepared(path, precision, tmp_path) for _ in range(2))
    assert any(name.startswith("plan-") for name in os.listdir(tmp_path / "gguf" / kept(tmp_path)[0]))
    assert first.info == second.info
    wanted, found = (dict(packed_cache.tensors_of(each.model)) for each in (first, second))
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert packed_cache.structure_of(first.model) == packed_cache.structure_of(second.model)
    assert first.num_bytes == second.num_bytes


@NEEDS_KERNELS
@pytest.mark.parametrize(
    "damage", [lambda plan: plan[: len(plan) // 2], lambda plan: plan.replace(b"linears", b"lineals")]
)
def test_a_damaged_plan_is_made_again(wide_models, tmp_path, damage, caplog):
    path = write_gguf(tmp_path / "tiny.gguf", wide_models["llama"], kind="Q4_1")
    first = prepared(path, "int4", tmp_path)
    (plan,) = (tmp_path / "gguf" / kept(tmp_path)[0]).glob("plan-*")
    whole = plan.read_bytes()
    plan.write_bytes(damage(whole))
    caplog.set_level(logging.INFO)
    assert prepared(path, "int4", tmp_path).num_bytes == first.num_bytes
    assert "again: plan-" in caplog.text and plan.read_bytes() == whole


@NEEDS_KERNELS
def test_two_models_of_a_file_share_their_embedding(wide_models, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", wide_models["llama"], kind="Q4_1")
    for precision in ("int4", "bitsandbytes-int8"):
        prepared(path, precision, tmp_path)
    int4, int8 = (prepared(path, precision, tmp_path).model for precision in ("int4", "bitsandbytes-int8"))
    assert int4.embedding is int8.embedding


@NEEDS_KERNELS
@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0"])
def test_int8_weights_are_those_of_bitsandbytes(wide_models, kind, tmp_path):
    """A folder with the dequantised weights in float32 is loaded with bitsandbytes itself."""
    path = write_gguf(tmp_path / "tiny.gguf", wide_models["llama"], kind=kind)
    loaded = load(Weights(path=path), tmp_path)
    loaded.model.save_pretrained(tmp_path / "folder")
    loaded.tokenizer.save_pretrained(tmp_path / "folder")
    ours, theirs = (prepared(one, "bitsandbytes-int8", tmp_path).model for one in (path, tmp_path / "folder"))
    wanted = dict(packed_cache.tensors_of(theirs))
    found = dict(packed_cache.tensors_of(ours)) | {packed_cache.EMBEDDING: plain(ours.embedding)}
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("Q4_0", "int4"), ("Q5_0", "bitsandbytes-int8"), ("Q8_0", "bitsandbytes-int8"), ("BF16", "bfloat16")],
)
def test_the_precision_that_is_nearest_to_a_file_depends_on_its_format(models, kind, precision, tmp_path):
    assert natural_precision(write_gguf(tmp_path / "tiny.gguf", models("llama-2"), kind=kind)) == precision


@NEEDS_KERNELS
def test_layers_of_more_bits_than_the_others_stay_wide_in_int4(wide_models, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", wide_models["llama"], kind="Q4_1")
    writer = gguf.GGUFWriter(tmp_path / "mixed.gguf", "llama")
    reader = gguf.GGUFReader(path)
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if is_array else None)
    for tensor in reader.tensors:
        kind = "Q8_0" if "ffn_down" in tensor.name else tensor.tensor_type.name
        add_tensor(writer, tensor.name, torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)), kind)
    finish(writer)
    decoder = prepared(tmp_path / "mixed.gguf", "int4", tmp_path).model
    formats = {linear.packed.kind.weight_format for linear in decoder.layers[0].linears}
    assert decoder.layers[0].down.packed.kind.weight_format == "int8"
    assert formats == {"int4", "int8"}


def test_the_configuration_and_the_tokenizer_are_kept_without_the_weights(gguf_file, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = local_folder(Weights(path=gguf_file), tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert folder.parent == tmp_path / "gguf"
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= written.keys()
    assert not list(folder.glob("*.safetensors"))
    assert "reading the configuration and the tokenizer of tiny.gguf (once)" in caplog.text
    caplog.clear()
    assert local_folder(Weights(path=gguf_file), tmp_path) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert caplog.text == ""


def test_a_gguf_file_that_changed_is_described_again(gguf_file, tmp_path):
    copy = Path(shutil.copy2(gguf_file, tmp_path / "tiny.gguf"))
    first = local_folder(Weights(path=copy), tmp_path)
    os.utime(copy, ns=(1, 1))
    assert local_folder(Weights(path=copy), tmp_path) != first
    assert len(kept(tmp_path)) == 2


def test_the_float32_copies_of_earlier_releases_are_removed(gguf_file, tmp_path):
    names = "tiny-0123456789abcdef", "other-0123456789abcdef", "tiny-two-0123456789abcdef", "tiny-fedcba9876543210"
    copies = [tmp_path / "converted" / name for name in names]
    for folder in [*copies, tmp_path / "gguf" / names[-1]]:  # the last copy is one of this release
        folder.mkdir(parents=True)
    local_folder(Weights(path=gguf_file), tmp_path)
    assert [folder.is_dir() for folder in copies] == [False, True, True, True]


def test_an_interruption_leaves_no_folder_behind(gguf_file, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AutoTokenizer, "from_pretrained", interrupt)
        local_folder(Weights(path=gguf_file), tmp_path)
    assert kept(tmp_path) == []


def test_two_parallel_readers_get_the_same_folder(gguf_file, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: local_folder(Weights(path=gguf_file), tmp_path), range(2))
    assert first == second
    assert kept(tmp_path) == [first.name]


def test_loading_draws_no_progress_bar(gguf_file, tmp_path, capfd):
    silence_libraries()
    load(Weights(path=gguf_file), tmp_path)
    assert capfd.readouterr().err == ""


# Files that cannot be loaded.


def refusal(path, tmp_path):
    with pytest.raises(ConfigurationError) as refused:
        load(Weights(path=path), tmp_path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_a_cut_file_is_reported_as_cut(gguf_file, tmp_path, share):
    path = tmp_path / "tiny.gguf"
    content = gguf_file.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refusal(path, tmp_path).startswith("cannot load tiny.gguf: the file is truncated or is not a GGUF file (")
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize(
    "content", [b"not GGUF" * 9, b"GGUF\3\0\0\0" + bytes(16), b""], ids=["other", "no tensor", "empty"]
)
def test_a_file_that_is_not_gguf_is_named(tmp_path, content):
    (tmp_path / "tiny.gguf").write_bytes(content)
    assert refusal(tmp_path / "tiny.gguf", tmp_path).startswith(
        "cannot load tiny.gguf: the file is truncated or is not a GGUF file ("
    )


def test_a_header_of_nested_arrays_or_wrong_types_ends_in_one_sentence(tmp_path):
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    path = tmp_path / "odd.gguf"
    for key in (
        text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,
        text("general.alignment") + struct.pack("<I", 8) + text("x"),
    ):
        path.write_bytes(start + key)
        for read in (GgufFile, read_header):
            with pytest.raises(ConfigurationError, match=r"odd\.gguf.* damaged: download .* again"):
                read(path)


def test_damaged_numbers_in_the_header_end_in_one_sentence(gguf_file, tmp_path):
    content = gguf_file.read_bytes()
    for place in range(8, 400, 13):
        damaged = content[:place] + b"\xff" * 8 + content[place + 8 :]
        (tmp_path / "tiny.gguf").write_bytes(damaged[: 1 << 16])
        assert refusal(tmp_path / "tiny.gguf", tmp_path).startswith("cannot load tiny.gguf: ")


def test_a_big_endian_file_is_refused_by_name(gguf_file, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(100))
    assert "it is a big-endian GGUF file" in refusal(tmp_path / "tiny.gguf", tmp_path)


def test_one_part_of_a_model_is_refused_by_name(models, tmp_path):
    path = write_gguf(
        tmp_path / "tiny.gguf", models("llama-2"), metadata=lambda writer: writer.add_uint16("split.count", 3)
    )
    assert "it is one of 3 parts of a model" in refusal(path, tmp_path)


def test_a_number_format_that_is_not_supported_is_refused_by_name(gguf_file, tmp_path):
    name = struct.pack("<Q", 18) + b"output_norm.weight"
    content = bytearray(gguf_file.read_bytes())
    place = content.index(name) + len(name) + 4 + 8  # number of dimensions, one dimension
    content[place : place + 4] = struct.pack("<I", 99)
    (tmp_path / "tiny.gguf").write_bytes(content)
    assert "a tensor has the number format number 99, which this server does not read" in refusal(
        tmp_path / "tiny.gguf", tmp_path
    )


def test_an_architecture_that_transformers_does_not_read_is_refused_by_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "rwkv7")
    add_byte_level_tokenizer(writer, 300)
    add_tensor(writer, "token_embd.weight", torch.zeros(300, 32))
    finish(writer)
    message = refusal(tmp_path / "tiny.gguf", tmp_path)
    assert message.startswith(
        "cannot load tiny.gguf: its architecture 'rwkv7' cannot be read from a GGUF file (supported: "
    )


def test_a_file_without_all_its_tensors_is_refused_with_their_number(models, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", models("llama-2"), left_out="down_proj")
    assert "it lacks 3 tensors: model.layers.0.mlp.down_proj.weight" in refusal(path, tmp_path)
    with pytest.raises(ConfigurationError, match="it lacks 3 tensors"):
        prepared(path, "int4", tmp_path)


def test_a_cache_that_cannot_be_written_is_reported_with_its_variable(gguf_file, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    with pytest.raises(ConfigurationError, match="set TAILRACE_CACHE_DIR"):
        local_folder(Weights(path=gguf_file), tmp_path / "cache")
