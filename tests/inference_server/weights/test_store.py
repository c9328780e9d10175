"""The list of stored models, and their removal."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from inference_server.weights.fetching.inventory import place_of
from inference_server.weights.source import Weights
from inference_server.weights.store import fetch, remove_stored, stored_models
from tailrace_shared.config_errors import ConfigurationError


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Use a hub's cache with a model, a repository of two GGUF files, an interrupted download and an image model."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    put(cache, "owner/chat", {"config.json": b"{}", "model.safetensors": bytes(1000)})
    put(cache, "owner/ggufs", {"a.gguf": bytes(300), "b.gguf": bytes(500)})
    put(cache, "owner/image", {"unet/weights.safetensors": bytes(9)})
    blobs = cache / "models--owner--half" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.tailrace.incomplete").write_bytes(bytes(70))
    return cache


def put(cache: Path, name: str, files: dict[str, bytes], commit: str = "c") -> None:
    """Write a commit of a repository, as the hub's client does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    for path, content in files.items():
        blob = repository / "blobs" / f"{hash((name, path)):x}"
        pointer = repository / "snapshots" / (commit * 40) / path
        blob.parent.mkdir(parents=True, exist_ok=True)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        pointer.symlink_to(blob)


def snapshot(cache: Path, name: str) -> Path:
    return cache / f"models--{name.replace('/', '--')}" / "snapshots" / ("c" * 40)


def form(cache_dir: Path, kind: str, name: str, num_bytes: int) -> Path:
    folder = cache_dir / kind / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(num_bytes))
    return folder


def listed(cache_dir: Path) -> list[tuple[str, str, int, bool]]:
    return [(each.name, each.kind, each.num_bytes, each.is_complete) for each in stored_models(cache_dir)]


def test_models_of_the_hub_and_gguf_files_are_listed_with_their_sizes(hub_cache, tmp_path):
    assert listed(tmp_path / "tailrace") == [
        ("owner/chat", "hub", 1002, True),
        ("owner/ggufs:a.gguf", "hub", 300, True),
        ("owner/ggufs:b.gguf", "hub", 500, True),
        ("owner/half", "hub", 70, False),
    ]


def test_a_packed_form_has_the_name_of_its_model_and_is_removed_with_it(hub_cache, tmp_path):
    cache_dir = tmp_path / "tailrace"
    packed = form(cache_dir, "packed", f"{place_of(snapshot(hub_cache, 'owner/chat'))}-int4.panels1-{'0' * 16}", 40)
    other = form(cache_dir, "packed", f"01234567-int4.panels1-{'0' * 16}", 50)
    assert listed(cache_dir)[:2] == [("owner/chat", "hub", 1002, True), ("owner/chat", "packed", 40, True)]
    assert remove_stored("owner/chat", cache_dir) == 1042
    assert not packed.exists()
    assert not snapshot(hub_cache, "owner/chat").exists()
    assert (f"packed/{other.name}", "packed", 50, True) in listed(cache_dir)


def test_a_gguf_file_is_removed_with_its_converted_form_and_the_other_file_stays(hub_cache, tmp_path):
    cache_dir = tmp_path / "tailrace"
    converted = form(cache_dir, "converted", f"a-{'0' * 16}", 40)
    form(cache_dir, "packed", f"{place_of(converted)}-int4.panels1-{'0' * 16}", 50)
    assert remove_stored("owner/ggufs:a.gguf", cache_dir) == 390
    assert [name for name, *_ in listed(cache_dir)] == ["owner/chat", "owner/ggufs:b.gguf", "owner/half"]
    assert remove_stored("owner/ggufs", cache_dir) == 500
    assert not (hub_cache / "models--owner--ggufs").exists()


@pytest.mark.parametrize(("removed", "commit"), [("sub/a.gguf", "c"), ("a.gguf", "d")], ids=["folder", "commit"])
def test_the_last_gguf_file_of_a_folder_or_a_commit_is_removed_without_the_others(hub_cache, tmp_path, removed, commit):
    put(hub_cache, "owner/two", {"kept.gguf": bytes(9)})
    put(hub_cache, "owner/two", {removed: bytes(5)}, commit)
    remove_stored(f"owner/two:{removed}", tmp_path)
    assert ("owner/two:kept.gguf", "hub", 9, True) in listed(tmp_path)
    remove_stored("owner/two:kept.gguf", tmp_path)
    assert not (hub_cache / "models--owner--two").exists()


def test_a_model_of_which_only_the_configuration_was_read_is_incomplete(hub_cache, tmp_path):
    put(hub_cache, "owner/large", {"config.json": b"{}"})
    assert ("owner/large", "hub", 2, False) in listed(tmp_path)


def test_an_interrupted_download_is_removed(hub_cache, tmp_path):
    assert remove_stored("owner/half", tmp_path / "tailrace") == 70
    assert not (hub_cache / "models--owner--half").exists()


def test_a_name_that_is_not_stored_is_refused(hub_cache, tmp_path):
    with pytest.raises(
        ConfigurationError, match="^no model 'owner/absent' is stored: `tailrace list` shows the names$"
    ):
        remove_stored("owner/absent", tmp_path)


def test_an_empty_cache_has_no_models(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert stored_models(tmp_path / "tailrace") == []


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"abc"),
            "model.safetensors is truncated: it has 3 bytes",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "model.safetensors is a pointer of Git LFS instead of the file: run `git lfs pull` in its folder",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "config.json is damaged (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "it has no safetensors files (model.safetensors; its weights are in pytorch_model.bin, a format that can run code "
            "when it is read)",
        ),
    ],
    ids=["cut", "pointer", "config", "damaged config", "pickled"],
)
def test_a_damaged_folder_is_refused_with_its_fault(tmp_path, tiny_model, damage, fault):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model("llama-2").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    with pytest.raises(ConfigurationError) as refusal:
        fetch(Weights(path=folder), tmp_path)
    assert str(refusal.value) == f"cannot load model: {fault}: copy or download its files again"


def test_a_folder_without_a_tokenizer_is_refused_with_the_consequence(tmp_path, tiny_model):
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model("llama-2") / name).read_bytes())
    with pytest.raises(
        ConfigurationError, match=r"has no tokenizer \(tokenizer.json or tokenizer.model\), so text cannot be "
    ):
        fetch(Weights(path=tmp_path), tmp_path)


def test_a_missing_shard_of_a_folder_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match=r"model-00001-of-00002\.safetensors is missing"):
        fetch(Weights(path=tmp_path), tmp_path)


def test_a_part_of_a_split_gguf_file_is_refused(tmp_path):
    part = tmp_path / "big-00001-of-00002.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(ConfigurationError, match="is one of 2 parts of a split GGUF file"):
        fetch(Weights(path=part), tmp_path)
