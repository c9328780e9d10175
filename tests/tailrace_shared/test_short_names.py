"""Short names of models."""

import pytest

from tailrace_shared.catalogue.short_names import Ambiguous, long_name, nearest_name

NAMES = [
    "@cf/meta/llama-3.1-8b-instruct",
    "@cf/meta/llama-3.1-8b-instruct-fp8",
    "@cf/qwen/qwen3-0.6b",
    "Qwen/Qwen3-0.6B:q.gguf",
]


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("@cf/qwen/qwen3-0.6b", "@cf/qwen/qwen3-0.6b"),
        ("llama-3.1-8b-instruct", "@cf/meta/llama-3.1-8b-instruct"),
        ("qwen/qwen3-0.6b", "@cf/qwen/qwen3-0.6b"),
        ("LLAMA-3.1-8B-instruct-fp8", "@cf/meta/llama-3.1-8b-instruct-fp8"),
        ("qwen3-0.6b:", "Qwen/Qwen3-0.6B:q.gguf"),
        ("gemma", None),
        ("3.1-8b", None),
        ("", None),
    ],
)
def test_a_short_name_is_the_last_part_or_its_beginning(short, name):
    assert long_name(short, NAMES) == name


def test_a_beginning_that_several_models_share_is_refused_with_their_names():
    with pytest.raises(Ambiguous, match=r"several models are called llama-3\.1: @cf/meta/llama.*instruct-fp8$"):
        long_name("llama-3.1", NAMES)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ("@cf/meta/lama-3.1-8b-instruct", "@cf/meta/llama-3.1-8b-instruct"),
        ("qwen3-0.6", "@cf/qwen/qwen3-0.6b"),
        ("@cf/qwen/qwen3-0.6b", "Qwen/Qwen3-0.6B:q.gguf"),
        ("hello", None),
        ("", None),
        ("x" * 1_000_000, None),
    ],
)
def test_the_nearest_name_is_another_one_with_a_similar_end(wrong, name):
    assert nearest_name(wrong, NAMES) == name
