"""The sampling parameters of a model's generation config."""

import json

import pytest
from transformers import GenerationConfig

from inference_server.weights.model_info import sampling_defaults


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({}, {}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
        ),
        ({"repetition_penalty": 1.05, "min_p": 0.1}, {"repetition_penalty": 1.05, "min_p": 0.1}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"top_k": 0, "top_p": 1}, {"top_p": 1.0}),
        ({"temperature": 9.0, "top_k": 64, "max_new_tokens": 20}, {"top_k": 64}),
    ],
)
def test_the_file_has_the_defaults(tmp_path, file, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    found = sampling_defaults(GenerationConfig.from_pretrained(tmp_path))
    assert found == expected
    assert isinstance(found.get("top_k", 0), int)


def test_a_value_out_of_range_is_logged(caplog):
    sampling_defaults(GenerationConfig(temperature=9.0))
    assert "ignored temperature in the model's generation config: 9.0 is not 0 to 5" in caplog.text
