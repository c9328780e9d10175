"""Kernels that are compiled before the server starts, for images."""

import pytest

from inference_server.kernels.isa import choice
from inference_server.kernels.jit import ahead_of_time, object_cache


@pytest.fixture
def one_kernel(monkeypatch):
    name, emit = next(ahead_of_time.variants())
    monkeypatch.setattr(ahead_of_time, "variants", lambda: iter([(name, emit)]))
    return name


def test_a_kernel_is_compiled_for_every_instruction_set_also_for_those_of_other_cpus(one_kernel, tmp_path):
    assert ahead_of_time.compile_all(tmp_path) == len(list(tmp_path.iterdir()))
    names = {path.name.split(".")[1].rpartition("-")[0] for path in tmp_path.iterdir()}
    assert {each.name for each in choice.available()} <= names <= set(choice.NAMES)


def test_a_shipped_kernel_is_not_compiled_again(one_kernel, tmp_path, monkeypatch):
    monkeypatch.setattr(object_cache, "shipped_folder", lambda: tmp_path / "shipped")
    ahead_of_time.compile_all(tmp_path / "shipped")
    monkeypatch.setattr(object_cache, "compile_kernel", None)
    _, emit = next(ahead_of_time.variants())
    assert object_cache.entry(one_kernel, emit, choice.available()[0], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
