"""A model packed once: the next start reads it, and finds out when it may not."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from inference_server.cpu.decoder_weights import DecoderWeights
from inference_server.kernels import isa
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.precision import cache_dtype
from inference_server.serving.catalog import Weights
from inference_server.settings import Settings
from inference_server.weights import packed_cache as packed
from inference_server.weights.prepare import prepare

pytestmark = pytest.mark.skipif(not isa.has_amx(), reason="this CPU has no tile registers")

CPU = torch.device("cpu")


@pytest.fixture
def source(tiny_model):
    return tiny_model("llama-2-heads-of-32")


@pytest.fixture
def prepared(source, tmp_path):
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


def test_the_facts_and_the_tokenizer_are_those_of_the_source(prepared):
    first, second = prepared(), prepared()
    assert second.facts == first.facts
    assert second.num_bytes == first.num_bytes
    text = "hello <s> there"
    assert second.tokenizer(text)["input_ids"] == first.tokenizer(text)["input_ids"]
    assert second.tokenizer.chat_template == first.tokenizer.chat_template


def test_a_second_start_does_not_import_the_models_of_transformers(prepared, source, tmp_path):
    prepared()
    program = f"""
import pathlib, sys, torch
from inference_server.serving.catalog import Weights
from inference_server.settings import Settings
from inference_server.weights.prepare import prepare
import inference_server.grpc_api.server
settings = Settings(cache_dir=pathlib.Path({str(tmp_path)!r}))
prepare(Weights(path=pathlib.Path({str(source)!r})), "int4", torch.device("cpu"), settings)
heavy = ("transformers.modeling_utils", "transformers.models.auto.modeling_auto", "numba")
print(*(name for name in heavy if name in sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == ""


def test_a_changed_source_is_packed_anew_and_the_old_one_removed(prepared, source, tmp_path):
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
def test_a_broken_file_is_packed_anew(prepared, tmp_path, content, caplog):
    caplog.set_level(logging.INFO)
    expected = logits(prepared(), "int4")
    (file,) = (tmp_path / "packed").glob("*/model.safetensors")
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    found = prepared()
    assert isinstance(found.model, DecoderWeights)
    assert "packing" in caplog.text and "anew" in caplog.text
    assert all(torch.equal(*pair) for pair in zip(expected, logits(found, "int4"), strict=True))
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_error(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "packed").write_text("in the way")
    assert isinstance(prepared().model, DecoderWeights)
    assert "not kept for the next start" in caplog.text


def test_a_tokenizer_that_would_come_back_different_is_not_kept(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_same", lambda *_: False)
    prepared()
    assert folders(tmp_path) == []


def test_a_model_with_sliding_windows_is_not_packed_whole(tiny_model, tmp_path):
    settings = Settings(cache_dir=tmp_path)
    found = prepare(Weights(path=tiny_model("mistral")), "bfloat16", CPU, settings)
    assert not isinstance(found.model, DecoderWeights)
    assert not (tmp_path / "packed").exists()
