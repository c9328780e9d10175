"""Names of models on the command line and in TAILRACE_MODELS, and the entries that they resolve to."""

import json

import pytest

from inference_server.serving.catalog import read_catalog
from inference_server.serving.known_models import known_models
from inference_server.serving.model_names import configured_entries, entries_of
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

EVERYTHING = {"task", "precision", "context_length", "sequence_length"}


def the_entry(name, catalog=DEFAULT_CATALOG):
    (entry,) = entries_of([name], catalog)
    return entry


def refusal(name, catalog=DEFAULT_CATALOG):
    with pytest.raises(ConfigurationError) as caught:
        entries_of([name], catalog)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """A folder that the resolution of names accepts as one in transformers' format."""
    path = tmp_path / "My-Model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("Qwen/Qwen3-0.6B", Weights(hub="Qwen/Qwen3-0.6B")),
        ("hf.co/Qwen/Qwen3-0.6B", Weights(hub="Qwen/Qwen3-0.6B")),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", Weights(hub="Qwen/Qwen3-0.6B")),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/", Weights(hub="Qwen/Qwen3-0.6B")),
        ("https://huggingface.co/a/b/tree/v1", Weights(hub="a/b", revision="v1")),
        ("https://huggingface.co/a/b/blob/main/sub/b.gguf?download=true", Weights(hub="a/b", file="sub/b.gguf")),
        ("hf.co/a/b/resolve/v1/b.gguf", Weights(hub="a/b", revision="v1", file="b.gguf")),
        ("Qwen/Qwen3-0.6B@v1.0", Weights(hub="Qwen/Qwen3-0.6B", revision="v1.0")),
        ("a/b-GGUF:b.Q4_0.gguf", Weights(hub="a/b-GGUF", file="b.Q4_0.gguf")),
        ("a/b@main:sub/b.gguf", Weights(hub="a/b", revision="main", file="sub/b.gguf")),
    ],
)
def test_a_hub_id_leaves_the_rest_to_the_model(name, weights):
    entry = the_entry(name)
    assert entry.weights == weights
    assert entry.name == str(weights)
    assert entry.open_keys >= {"precision", "context_length", "sequence_length"}


def test_a_name_of_the_catalogue_has_the_weights_and_the_window_of_workers_ai():
    known = known_models()["@cf/meta/llama-3.2-1b-instruct"]
    entry = the_entry(known.name)
    assert (entry.name, entry.weights) == (known.name, Weights(hub=known.hub))
    assert (entry.window_limit, entry.shape) == (known.context_length, known.shape)
    assert "precision" in entry.open_keys and "task" not in entry.open_keys


def test_the_last_part_of_a_name_is_enough():
    assert the_entry("llama-3.2-1b-instruct").name == "@cf/meta/llama-3.2-1b-instruct"


def test_a_name_of_the_default_catalog_has_its_entry():
    assert the_entry("smollm2-135m-instruct") == read_catalog(DEFAULT_CATALOG)[2]


def test_a_catalog_of_the_users_own_precedes_the_catalogue(tmp_path, folder):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        f'[[models]]\nname = "@cf/meta/llama-3.2-1b-instruct"\nsource = {{ path = {json.dumps(str(folder))} }}'
    )
    assert the_entry("@cf/meta/llama-3.2-1b-instruct", catalog).weights == Weights(path=folder)


def test_a_catalog_of_the_users_own_may_use_names_like_hub_ids(tmp_path, folder):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(f'[[models]]\nname = "team/model"\nsource = {{ path = "{folder}" }}\n')
    assert the_entry("team/model", catalog).weights == Weights(path=folder)


def test_every_model_of_the_catalogue_has_an_entry_or_the_reason_why_not():
    for name, known in known_models().items():
        if known.runs_on == "tailrace":
            assert the_entry(name).task == known.task
        else:
            assert known.obstacle in refusal(name)


def test_a_folder_has_its_own_name(folder):
    entry = the_entry(str(folder))
    assert (entry.name, entry.weights, entry.open_keys) == ("My-Model", Weights(path=folder), EVERYTHING)


def test_a_relative_path_needs_no_dot(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert the_entry("My-Model").weights == Weights(path=folder)


def test_a_file_and_a_folder_with_one_file_mean_the_file(tmp_path, monkeypatch):
    (tmp_path / "tiny.Q4_0.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path.parent)
    for name in (tmp_path, tmp_path / "tiny.Q4_0.gguf", tmp_path.name):
        entry = the_entry(str(name))
        assert (entry.name, entry.weights.path) == ("tiny.Q4_0", tmp_path / "tiny.Q4_0.gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./missing", "there is no file or folder ./missing"),
        ("missing.gguf", "there is no file or folder missing.gguf"),
        ("a/b:Q4_K_M", "a/b:Q4_K_M does not name a GGUF file: write a/b:NAME.gguf"),
        (
            "@cf/meta/lama-3.2-1b-instruct",
            "no model is called @cf/meta/lama-3.2-1b-instruct (similar names: @cf/meta/llama",
        ),
        ("nothing", "no model is called nothing: give a name of Workers AI's catalogue, a hub id"),
        ("llama", "several models are called llama: @cf/meta/llama"),
    ],
)
def test_a_wrong_name_is_explained(name, message):
    assert message in refusal(name)


def test_files_that_are_no_models_are_explained(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path.parent)
    assert "model.safetensors is not a GGUF file" in refusal(f"{tmp_path.name}/model.safetensors")
    assert "model.safetensors is not a GGUF file: name the folder" in refusal(str(tmp_path / "model.safetensors"))
    assert "has no config.json" in refusal(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert "name one of its files: a.gguf, b.gguf" in refusal(str(tmp_path))


def test_a_folder_of_several_files_is_no_model_of_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).touch()
    monkeypatch.chdir(tmp_path)
    assert the_entry(folder.name) == read_catalog(DEFAULT_CATALOG)[2]
    folder = folder.rename(tmp_path / "files")
    assert "name one of its files: a.gguf, b.gguf" in refusal(folder.name)


def test_two_models_of_one_name_are_refused_and_a_repeated_name_counts_once(tmp_path, folder):
    other = tmp_path / "other" / folder.name
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="two of the models have the name My-Model"):
        entries_of([str(folder), str(other)])
    assert len(entries_of([str(folder), str(folder)])) == 1


def test_the_settings_name_the_models_instead_of_the_catalog(folder):
    given = Settings(models=f" {folder} ,Qwen/Qwen3-0.6B")
    assert [entry.name for entry in configured_entries(given)] == ["My-Model", "Qwen/Qwen3-0.6B"]
    assert configured_entries(Settings()) == read_catalog(DEFAULT_CATALOG)
    with pytest.raises(ConfigurationError, match="TAILRACE_MODELS names no model"):
        configured_entries(Settings(models=" , "))


def test_precision_and_window_of_the_settings_apply_to_models_that_generate_text():
    *generators, one, other = configured_entries(Settings(precision="int4", max_context=100))
    assert {(entry.precision, entry.window_limit) for entry in generators} == {("int4", 100)}
    assert {(entry.precision, entry.window_limit) for entry in (one, other)} == {("float32", None)}
