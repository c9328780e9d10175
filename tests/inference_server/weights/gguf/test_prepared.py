"""Descriptions of GGUF files that a container image contains."""

import pytest

from inference_server.weights.gguf import description
from inference_server.weights.gguf.description import description_folder, in_cache


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return a file, of which an image contains a description with one plan."""
    monkeypatch.setattr(description, "prepared_folder", lambda: tmp_path / "prepared")
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    prepared = description_folder(file, tmp_path / "prepared")
    prepared.mkdir(parents=True)
    (prepared / "plan-int4").write_text("a plan")
    return file


def test_a_prepared_description_is_read_where_it_is(file, tmp_path):
    assert description_folder(file, tmp_path / "cache").parent == tmp_path / "prepared" / "gguf"
    assert not (tmp_path / "cache").exists()


def test_a_further_plan_goes_into_a_copy_in_the_cache_which_then_has_priority(file, tmp_path):
    cache = tmp_path / "cache"
    own = in_cache(description_folder(file, cache), cache)
    assert (own / "plan-int4").read_text() == "a plan"
    assert description_folder(file, cache) == own and own.parent == cache / "gguf"


def test_a_changed_file_has_no_prepared_description(file, tmp_path):
    file.write_bytes(b"GGUF, changed")
    assert description_folder(file, tmp_path / "cache").parent == tmp_path / "cache" / "gguf"
