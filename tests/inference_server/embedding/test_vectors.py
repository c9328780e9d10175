"""Vectors of packed batches beside those of transformers, which computes each text by itself."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from inference_server.embedding.encoder import PackedText
from inference_server.embedding.load import load_encoder
from inference_server.errors import UnsupportedModel
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from tests.support.models.tiny_encoders import POOLINGS, write_encoder

CPU = torch.device("cpu")
TEXTS = [
    "where is new york",
    "the program",
    "a",
    "an answer comes word by word so that nobody waits for the end of a long reply",
    "  white space around it \n",
    "unknown characters: é 中 😀",
    "where is new york",
    "one two three " * 60,
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(root / kind, kind) for kind in POOLINGS}


@pytest.fixture(scope="module")
def loaded(folders):
    return {kind: load(folder) for kind, folder in folders.items()}


def load(folder: Path, precision="float32"):
    return load_encoder(Weights(path=folder), precision, CPU, folder)


def packed(model, texts, pooling=None, dimensions=None):
    return [
        PackedText(text.token_ids, pooling or model.rules.pooling, model.rules.normalizes, dimensions)
        for text in model.texts.encode(texts, model.max_tokens)
    ]


@torch.inference_mode()
def reference(folder: Path, texts, pooling: str, *, most=100, normalizes=True) -> np.ndarray:
    """Return the vectors that transformers computes, one text at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        inputs = tokenizer(text.strip(), truncation=True, max_length=most, return_tensors="pt")
        hidden = model(input_ids=inputs["input_ids"]).last_hidden_state[0]
        row = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        rows.append(F.normalize(row, dim=0) if normalizes else row)
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("kind", POOLINGS)
def test_vectors_are_those_of_transformers(folders, loaded, kind):
    expected = reference(folders[kind], TEXTS, POOLINGS[kind])
    found = np.stack(loaded[kind].encoder.vectors(packed(loaded[kind], TEXTS)))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5
    assert not np.allclose(expected[0], expected[1], atol=0.05), "the texts of this test have too similar vectors"


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_vector_does_not_depend_on_the_batch(loaded, kind):
    model = loaded[kind]
    alone = model.encoder.vectors(packed(model, TEXTS[:1]))[0]
    draw = random.Random(1)
    for _ in range(5):
        others = draw.choices(TEXTS, k=draw.randint(1, 12))
        place = draw.randrange(len(others))
        batch = [*others[:place], TEXTS[0], *others[place:]]
        assert np.abs(model.encoder.vectors(packed(model, batch))[place] - alone).max() < 1e-5


@pytest.mark.parametrize("kind", POOLINGS)
def test_each_layer_is_reported(loaded, kind):
    reported = []
    loaded[kind].encoder.vectors(packed(loaded[kind], TEXTS), lambda: reported.append(1))
    assert len(reported) == 3


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_pooling_of_a_request_replaces_the_models(folders, loaded, pooling):
    texts = packed(loaded["bert"], TEXTS[:3], pooling)
    expected = reference(folders["bert"], TEXTS[:3], pooling)
    assert np.abs(np.stack(loaded["bert"].encoder.vectors(texts)) - expected).max() < 1e-5


def test_one_batch_may_have_several_poolings(folders, loaded):
    model, kinds = loaded["bert"], ["mean", "cls", "last", "mean"]
    texts = [packed(model, [text], kind)[0] for text, kind in zip(TEXTS, kinds, strict=False)]
    for vector, text, kind in zip(model.encoder.vectors(texts), TEXTS, kinds, strict=False):
        assert np.abs(vector - reference(folders["bert"], [text], kind)[0]).max() < 1e-5


def test_dimensions_cut_and_normalise_again(loaded):
    model = loaded["bert"]
    whole = model.encoder.vectors(packed(model, TEXTS[:2]))
    cut = model.encoder.vectors(packed(model, TEXTS[:2], dimensions=16))
    for long, short in zip(whole, cut, strict=True):
        assert np.allclose(short, long[:16] / np.linalg.norm(long[:16]), atol=1e-6)


def test_bfloat16_is_close_to_float32(folders, loaded):
    narrow = load(folders["bert"], "bfloat16")
    first = np.stack(narrow.encoder.vectors(packed(narrow, TEXTS)))
    second = np.stack(loaded["bert"].encoder.vectors(packed(loaded["bert"], TEXTS)))
    assert (first * second).sum(1).min() > 0.99


def test_a_text_is_cut_before_its_control_tokens(loaded):
    model = loaded["bert"]
    assert model.max_tokens == 100  # of sentence-transformers' file; the model has 128 positions
    (text,) = model.texts.encode(["new " * 500], model.max_tokens)
    assert (len(text.token_ids), text.num_tokens) == (100, 502)
    assert (text.token_ids[0], text.token_ids[-1]) == (2, 3)


def test_a_folder_without_declared_pooling_uses_the_mean_without_normalising(tmp_path):
    folder = write_encoder(tmp_path / "plain", "bert", declares=False)
    model = load(folder)
    expected = reference(folder, TEXTS[:3], "mean", normalizes=False, most=128)
    assert np.abs(np.stack(model.encoder.vectors(packed(model, TEXTS[:3]))) - expected).max() < 1e-4


def test_a_module_that_is_not_supported_is_named(tmp_path):
    folder = write_encoder(tmp_path / "dense", "bert")
    modules = (folder / "modules.json").read_text().replace("models.Normalize", "models.Dense")
    (folder / "modules.json").write_text(modules)
    with pytest.raises(UnsupportedModel, match="module Dense"):
        load(folder)


def test_a_pooling_that_is_not_supported_is_named(tmp_path):
    folder = write_encoder(tmp_path / "max", "bert")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(UnsupportedModel, match="pooling_mode_max_tokens"):
        load(folder)


def test_missing_tensors_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path / "cut", "bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.query.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"lack the tensor encoder\.layer\.1\.attention\.self\.query"):
        load(folder)
