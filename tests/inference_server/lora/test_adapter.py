"""Adapters are read as PEFT defines them, and those that this server cannot apply are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference_server.errors import UnsupportedModel
from inference_server.lora.adapter import fitted, read_adapter
from tests.support.models.adapters import write_adapter

SHAPES = {"model.layers.0.self_attn.q_proj": (48, 32), "model.layers.0.mlp.up_proj": (64, 32)}
Q_PROJ, UP_PROJ = SHAPES


def adapter(tmp_path: Path, **config: object) -> Path:
    return write_adapter(tmp_path / "adapter", SHAPES, rank=4, **config)


def change(folder: Path, **config: object) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def rename(folder: Path, **names: str) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {names.get(name.rpartition(".lora_")[2], name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        ({"lora_alpha": 8}, (2.0, 2.0)),
        ({"lora_alpha": 8, "use_rslora": True}, (4.0, 4.0)),
        ({"lora_alpha": 8, "alpha_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3}}, (0.5, 2.0)),
        ({"lora_alpha": 8, "alpha_pattern": {".*mlp.*": 16}, "rank_pattern": {"up_proj": 4}}, (2.0, 4.0)),
    ],
)
def test_the_factor_is_that_of_peft(tmp_path: Path, config: dict[str, object], factors: tuple[float, float]) -> None:
    folder = adapter(tmp_path, **config)
    tensors = load_file(folder / "adapter_model.safetensors")
    pairs = read_adapter(folder).pairs
    for module, factor in zip(SHAPES, factors, strict=True):
        assert torch.equal(pairs[module].down, tensors[f"base_model.model.{module}.lora_A.weight"])
        assert torch.allclose(pairs[module].up, factor * tensors[f"base_model.model.{module}.lora_B.weight"])


def test_settings_without_effect_are_accepted(tmp_path: Path) -> None:
    settings = {"lora_dropout": 0.1, "init_lora_weights": "gaussian", "bias": "none", "use_dora": False, "new": None}
    assert set(read_adapter(adapter(tmp_path, **settings)).pairs) == set(SHAPES)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "is a DoRA adapter"),
        ({"bias": "all"}, "trains biases"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules"),
        ({"peft_type": "IA3"}, "is of type IA3"),
        ({"init_lora_weights": "pissa"}, "changes the weights of the model"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "adapts parameters"),
        ({"something_new": 3}, "sets something_new"),
        ({"r": 512}, "has the rank 512: it must be 1 to 256"),
        ({"lora_alpha": "8"}, "must be numbers"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern '\\('"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, config: dict[str, object], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words) as error:
        read_adapter(change(adapter(tmp_path), **config))
    assert str(tmp_path / "adapter") in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = adapter(tmp_path)
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"adapter_config\.json"):
        read_adapter(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UnsupportedModel, match=r"lacks the file adapter_model\.safetensors: save the adapter as"):
        read_adapter(folder)
    with pytest.raises(UnsupportedModel, match="is not a LoRA adapter"):
        read_adapter(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnsupportedModel, match="is damaged"):
        read_adapter(folder)


def test_tensors_that_are_not_those_of_linear_layers_are_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    rename(folder, **{"A.weight": "base_model.model.model.embed_tokens.lora_embedding_A"})
    with pytest.raises(UnsupportedModel, match="contains base_model.model.model.embed_tokens.lora_embedding_A"):
        read_adapter(folder)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="not finite"):
        read_adapter(adapter(tmp_path, size=float("inf")))


def test_an_adapter_of_another_model_is_refused_with_both_shapes(tmp_path: Path) -> None:
    found = read_adapter(adapter(tmp_path))
    with pytest.raises(UnsupportedModel, match="it has 32 inputs and 48 outputs, the model has 16 and 48"):
        fitted(found, {**SHAPES, Q_PROJ: (48, 16)})
    with pytest.raises(UnsupportedModel, match=f"adapts {UP_PROJ}, which is not a linear layer"):
        fitted(found, {Q_PROJ: (48, 32)})


def test_the_matrices_of_a_layer_that_contains_several_are_divided(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "fused", {"model.layers.0.self_attn.qkv_proj": (80, 32)}, targets=("qkv_proj",), rank=4
    )
    found = read_adapter(folder)
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    pairs = fitted(found, dict(zip(names, ((48, 32), (16, 32), (16, 32)), strict=True)))
    assert list(pairs) == names
    whole = found.pairs["model.layers.0.self_attn.qkv_proj"]
    assert torch.equal(torch.cat([pairs[name].up for name in names]), whole.up)
    assert all(torch.equal(pairs[name].down, whole.down) for name in names)
