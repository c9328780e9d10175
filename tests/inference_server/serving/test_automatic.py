"""The choice of precision and lengths for a model whose catalog entry does not set them."""

from dataclasses import replace

import pytest
import torch

from inference_server.kernels.isa import choice
from inference_server.serving import automatic
from inference_server.serving.catalog import CatalogEntry
from inference_server.settings.server import Settings
from inference_server.weights.shape import ModelShape
from inference_server.weights.source import Weights
from tests.support.models.tiny_encoders import write_encoder

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30
EVERYTHING = frozenset(("task", "precision", "context_length", "sequence_length"))
# 8 billion weights, and 0.125 MiB of keys and values per token in 16 bits.
SHAPE = ModelShape(
    linear_weights=7 * 10**9,
    vocab_weights=5 * 10**8,
    is_tied=False,
    kv_width=2048,
    num_layers=32,
    max_tokens=131_072,
)


def open_entry(path="model", **values):
    return CatalogEntry(name="m", description="", weights=Weights(path=path), open_keys=EVERYTHING, **values)


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """Returns a function from a model's sizes and the free memory to the completed entry."""

    def complete(shape, free_gib, device=CPU, natural=None, **values):
        path = tmp_path / "model.gguf" if natural else tmp_path
        monkeypatch.setattr(automatic, "natural_precision", lambda path: natural)
        monkeypatch.setattr(automatic, "available_memory_bytes", lambda: int(free_gib * GIB))
        monkeypatch.setattr(automatic, "free_bytes", lambda device: int(free_gib * GIB))
        monkeypatch.setattr(automatic, "read_shape", lambda path: shape)
        (entry,) = automatic.complete([open_entry(path, **values)], Settings(cache_dir=tmp_path), device)
        assert not entry.open_keys
        return entry

    return complete


@pytest.mark.skipif(not choice.available(), reason="without kernels, integer weights are not chosen")
@pytest.mark.parametrize(
    ("free_gib", "natural", "precision"),
    [
        (24, None, "bitsandbytes-int8"),
        (2, None, "bitsandbytes-int8"),
        (2, "bitsandbytes-int8", "int4"),
        (24, "int4", "int4"),
        (24, "bfloat16", "bitsandbytes-int8"),
    ],
)
def test_a_cpu_gets_int8_and_int4_if_memory_or_file_are_small(chosen, free_gib, natural, precision):
    assert chosen(replace(SHAPE, is_file=natural is not None), free_gib, natural=natural).precision == precision


@pytest.mark.skipif(not choice.available(), reason="without kernels, integer weights are not chosen")
def test_a_checkpoint_of_4_bits_stays_in_4_bits(chosen):
    assert chosen(replace(SHAPE, quantized_bits=4), 64).precision == "int4"


@pytest.mark.parametrize(("free_gib", "precision"), [(24, "bfloat16"), (12, "bitsandbytes-int8")])
def test_a_gpu_gets_16_bits_if_they_fit(chosen, monkeypatch, free_gib, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen(SHAPE, free_gib, GPU).precision == precision


def test_a_cpu_without_kernels_gets_16_bits(chosen, monkeypatch):
    monkeypatch.setattr(choice, "chosen", lambda: None)
    assert chosen(SHAPE, 64).precision == "float16"


def test_the_window_is_the_models_own_if_it_fits(chosen):
    entry = chosen(replace(SHAPE, max_tokens=4096), 24)
    assert (entry.window_limit, entry.context_length, entry.sequence_length) == (4096, 4096, 2048)


def test_a_window_beyond_the_memory_is_reduced(chosen):
    entry = chosen(SHAPE, 24)
    cache = entry.window_limit * SHAPE.token_bytes(entry.precision)
    left = 0.9 * 24 * GIB - SHAPE.weight_bytes(entry.precision, "cpu")
    assert entry.window_limit % 256 == 0
    assert 0.48 * left < cache <= 0.5 * left
    assert entry.sequence_length == 8192


def test_the_limit_of_catalogue_and_settings_is_kept(chosen):
    assert chosen(SHAPE, 24, window_limit=3000).window_limit == 3000


def test_lengths_that_the_catalog_gives_are_kept(tmp_path, tiny_model):
    given = replace(
        open_entry(tiny_model("llama-2")), context_length=70, sequence_length=30, open_keys=frozenset(["precision"])
    )
    (entry,) = automatic.complete([given], Settings(cache_dir=tmp_path), CPU)
    assert (entry.context_length, entry.sequence_length, entry.window_limit) == (70, 30, None)


def test_a_configuration_without_the_usual_keys_gets_defaults(chosen):
    entry = chosen(None, 24)
    assert (entry.window_limit, entry.task) == (4096, "generation")


def test_an_encoder_becomes_an_embedding_model(tmp_path):
    folder = write_encoder(tmp_path / "encoder", "bert")
    (entry,) = automatic.complete([open_entry(folder)], Settings(cache_dir=tmp_path), CPU)
    assert (entry.task, entry.precision, entry.sequence_length) == ("embedding", "float32", 0)


def test_models_that_need_a_download_are_left_out_of_a_report(tmp_path):
    hub = replace(open_entry(), weights=Weights(hub="nobody/nothing", file="a.gguf"))
    closed = replace(open_entry(), open_keys=frozenset())
    assert automatic.complete([hub, closed], Settings(cache_dir=tmp_path), CPU, may_fetch=False) == [closed]


def test_in_deterministic_mode_the_free_memory_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(automatic, "memory_bytes", lambda: 24 * GIB)
    monkeypatch.setattr(automatic, "read_shape", lambda path: SHAPE)
    completed = []
    for free_gib in (2, 24):
        monkeypatch.setattr(automatic, "available_memory_bytes", lambda free=free_gib: free * GIB)
        completed.append(automatic.complete([open_entry(tmp_path)], Settings(deterministic=True), CPU))
    assert completed[0] == completed[1]
