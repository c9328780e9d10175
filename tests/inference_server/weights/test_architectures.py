"""Architectures that this server does not run are refused by name, before their weights are downloaded or read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from inference_server.weights.architectures import reasons, refusal
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import entry, hosting
from tests.support.models.text_architectures import SERVED, small_config

REFUSED = {
    "bert": 'task = "embedding"',
    "bloom": "bloom: its attention has position biases (ALiBi)",
    "falcon": "falcon: its modules in transformers compute attention themselves",
    "llama4_text": "chunked",
    "mamba": "mamba: its layers keep a state instead of keys and values",
    "mpt": "mpt: its attention has position biases (ALiBi)",
    "t5": "t5: it has an encoder in addition to its decoder",
}


@pytest.mark.parametrize(("name", "named"), REFUSED.items(), ids=REFUSED)
async def test_a_model_is_refused_before_its_weights_are_read(name: str, named: str, tmp_path: Path) -> None:
    config = CONFIG_MAPPING[name]()
    config.save_pretrained(tmp_path)  # a folder without weights
    with pytest.raises(ConfigurationError, match="tiny .* cannot be served: ") as caught:
        async with hosting(entry(tmp_path)):
            pass
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "new", "is_encoder_decoder": True}, "its architecture is new: it has an encoder"),
        ({"model_type": "new", "layer_types": ["full_attention", "mamba"]}, "layers are of type mamba"),
        (
            {"model_type": "new", "text_config": {"model_type": "mamba2"}},
            "its architecture is new: its layers keep a state",
        ),
        ({"model_type": "new", "text_config": {"attention_chunk_size": 64}}, "chunked"),
    ],
)
def test_the_configuration_of_an_unknown_architecture_may_say_why(config: Mapping[str, Any], named: str) -> None:
    assert named in str(refusal(config))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "unheard-of"},
        {"model_type": "bert", "is_decoder": True},
        {"model_type": "granitemoehybrid", "layer_types": ["attention"]},
    ],
)
def test_other_configurations_are_not_refused(config: Mapping[str, Any]) -> None:
    assert refusal(config) is None


def test_no_architecture_of_the_table_is_refused() -> None:
    assert not set(SERVED) & set(reasons())
    for name in SERVED:
        written = json.loads(small_config(name).to_json_string())
        assert refusal(written) is None, name
